/* Chance, verdicts, the heap of what will happen, and the network. */

/* ---- chance ---- */

static uint64_t draw(struct world *w) {
    uint64_t z = (w->random += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* A number in [0, n). */
static int64_t below(struct world *w, int64_t n) {
    return (int64_t)(draw(w) % (uint64_t)n);
}

static int64_t between(struct world *w, int64_t low, int64_t high) {
    return low + below(w, high - low + 1);
}

static bool chance(struct world *w, int percent) {
    return below(w, 100) < percent;
}

/* ---- verdicts ---- */

static void violate(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));
static void violate(struct world *w, const char *format, ...) {
    int length =
        snprintf(w->violation, sizeof w->violation, "seed %llu, attempt %u, %lld ms: ", (unsigned long long)w->seed,
                 w->begun.attempt, (long long)w->now_ms);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(w->violation + length, sizeof w->violation - (size_t)length, format, arguments);
    va_end(arguments);
    longjmp(w->violated, 1);
}

static void trace(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void trace(struct world *w, const char *format, ...) {
    if (!w->trace) return;
    printf("%8lld  ", (long long)w->now_ms);
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
}

/* ---- what will happen: a heap of slots ---- */

static struct item pool[EVENTS_MAX];
static struct {
    int64_t time_ms;
    uint64_t order;
    int slot;
} heap[EVENTS_MAX];
static int free_slots[EVENTS_MAX];

static bool earlier(int a, int b) {
    return heap[a].time_ms != heap[b].time_ms ? heap[a].time_ms < heap[b].time_ms : heap[a].order < heap[b].order;
}

static void swap_items(int a, int b) {
    __typeof__(heap[0]) held = heap[a];
    heap[a] = heap[b];
    heap[b] = held;
}

static void clear_items(struct world *w) {
    w->items_count = 0;
    for (int i = 0; i < EVENTS_MAX; i++) free_slots[i] = i;
}

/* Puts a copy of `item` into the future; keeps its order if it has one. */
static void push(struct world *w, const struct item *item) {
    if (w->items_count == EVENTS_MAX) violate(w, "too much is going to happen at a time");
    int slot = free_slots[w->items_count];
    pool[slot] = *item;
    if (!pool[slot].order) pool[slot].order = ++w->items_order;
    if (!pool[slot].attempt) pool[slot].attempt = w->team.attempt;
    int i = w->items_count++;
    heap[i].time_ms = item->time_ms;
    heap[i].order = pool[slot].order;
    heap[i].slot = slot;
    for (; i && earlier(i, (i - 1) / 2); i = (i - 1) / 2) swap_items(i, (i - 1) / 2);
}

static void push_plain(struct world *w, enum item_kind kind, int64_t delay_ms, int link, int rank) {
    push(w, &(struct item){.kind = kind,
                           .time_ms = w->now_ms + delay_ms,
                           .generation = w->options.generation,
                           .link = link,
                           .rank = rank});
}

static struct item pop(struct world *w) {
    int slot = heap[0].slot;
    heap[0] = heap[--w->items_count];
    free_slots[w->items_count] = slot;
    for (int i = 0;;) {
        int least = i, left = 2 * i + 1, right = left + 1;
        if (left < w->items_count && earlier(left, least)) least = left;
        if (right < w->items_count && earlier(right, least)) least = right;
        if (least == i) break;
        swap_items(i, least);
        i = least;
    }
    return pool[slot];
}

/* ---- network: what a link carries arrives in order, or not at all ---- */

static ls_connection new_connection(struct world *w, int link) {
    return ++w->connections << 8 | (ls_connection)link;
}

static int64_t network_delay(struct world *w) {
    return chance(w, 5) ? between(w, 10, 300) : between(w, 0, 4);
}

static void send_to_core(struct world *w, int link_index, struct item *item) {
    struct link *link = &w->team.link[link_index];
    if (link->vanish_to_core) {
        link->vanish_to_core--;
        return;
    }
    item->kind = ITEM_TO_CORE;
    item->link = link_index;
    item->generation = w->options.generation;
    item->event.connection = link->connection;
    item->time_ms = w->now_ms + network_delay(w);
    if (item->time_ms < link->last_to_core_ms) item->time_ms = link->last_to_core_ms;
    link->last_to_core_ms = item->time_ms;
    push(w, item);
}

static void send_to_team(struct world *w, ls_connection connection, const struct ls_core_action *action) {
    int index = (int)(connection & 255);
    if (index >= w->team.links || w->team.link[index].connection != connection) return;
    struct link *link = &w->team.link[index];
    if (link->vanish_to_team) {
        link->vanish_to_team--;
        return;
    }
    struct item item = {
        .kind = ITEM_TO_TEAM, .message = MESSAGE_ACTION, .link = index, .generation = w->options.generation};
    item.action = *action;
    item.action.connection = connection;
    item.time_ms = w->now_ms + network_delay(w);
    if (item.time_ms < link->last_to_team_ms) item.time_ms = link->last_to_team_ms;
    link->last_to_team_ms = item.time_ms;
    push(w, &item);
}
