/* Runs SQL on an SQLite file: edit_database FILE SQL. What a test does to a journal that nobody should do. */
#include <sqlite3.h>
#include <stdio.h>

int main(int argc, char **argv) {
    sqlite3 *database = NULL;
    if (argc != 3) return 2;
    int failed = sqlite3_open_v2(argv[1], &database, SQLITE_OPEN_READWRITE, NULL) ||
                 sqlite3_exec(database, argv[2], NULL, NULL, NULL);
    if (failed) fprintf(stderr, "%s\n", sqlite3_errmsg(database));
    if (!failed && sqlite3_changes(database) == 0) failed = fprintf(stderr, "no row was changed\n") > 0;
    sqlite3_close(database);
    return failed != 0;
}
