/* Looking at this host. */
#define _GNU_SOURCE
#include "coordinator/doctor.h"

#include "coordinator/network.h"
#include "worker/device/device.h"
#include "worker/memory/host_memory.h"
#ifdef LS_CUDA
#include "worker/device/cuda/libraries.h"
#endif

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/timex.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

enum { DESCRIPTORS_LEAST = 256, SHM_MIB_LEAST = 64, SPACE_GIB_LEAST = 1, MEMORY_MIB_LEAST = 1024, REACH_MS = 1000 };

static enum ls_health fine_if(bool fine) {
    return fine ? LS_HEALTH_FINE : LS_HEALTH_WRONG;
}

/* The first line of a small file, without its end; "" when there is none. */
static void read_line(const char *path, char *line, size_t size) {
    FILE *file = fopen(path, "re");
    line[0] = 0;
    if (!file) return;
    if (!fgets(line, (int)size, file)) line[0] = 0;
    line[strcspn(line, "\n")] = 0;
    fclose(file);
}

/* ---- memory, limits, clocks ---- */

/* A limit of this process's cgroup (version 2): the smallest on the way to the root; -1: none. */
static double cgroup_limit(const char *name) {
    char line[PATH_MAX], path[PATH_MAX + 64], text[64];
    double limit = -1;
    read_line("/proc/self/cgroup", line, sizeof line);
    if (strncmp(line, "0::", 3) != 0) return -1;
    for (char *slash = line + strlen(line); slash > line + 2; slash = strrchr(line + 3, '/')) {
        *slash = 0;
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/%s", line + 3, name);
        read_line(path, text, sizeof text);
        double value, period = 1;
        /* "max", a number, or for the CPU a quota and its period. */
        if (sscanf(text, "%lf %lf", &value, &period) >= 1 && (limit < 0 || value / period < limit))
            limit = value / period;
        if (!strchr(line + 3, '/')) break;
    }
    return limit;
}

static void examine_memory(struct ls_examination *examination) {
    const double memory_mib = (double)ls_host_memory_available() / (1 << 20);
    ls_doctor_report(examination, fine_if(memory_mib >= MEMORY_MIB_LEAST), "memory",
                     "end other programs, or use a host with more", "%.0f MiB available", memory_mib);
    const double memory = cgroup_limit("memory.max"), cores = cgroup_limit("cpu.max"), pids = cgroup_limit("pids.max");
    if (memory >= 0)
        ls_doctor_report(examination, fine_if(memory / (1 << 20) >= MEMORY_MIB_LEAST), "cgroup",
                         "give the container or job more memory", "%.0f MiB may be used by this container or job",
                         memory / (1 << 20));
    if (cores >= 0)
        ls_doctor_report(examination, cores + 0.01 < (double)ls_launch_cores() ? LS_HEALTH_NOTED : LS_HEALTH_FINE,
                         "cgroup", "start no more threads (launcher.threads_per_rank times ranks) than that",
                         "the time of %.1f cores may be used", cores);
    if (pids >= 0)
        ls_doctor_report(examination, fine_if(pids >= DESCRIPTORS_LEAST), "cgroup", "raise the limit of processes",
                         "%.0f processes and threads may exist", pids);
}

static void examine_clocks(struct ls_examination *examination) {
    char source[64];
    struct timex clock = {.modes = 0};
    read_line("/sys/devices/system/clocksource/clocksource0/current_clocksource", source, sizeof source);
    const bool slow = strcmp(source, "hpet") == 0 || strcmp(source, "acpi_pm") == 0 || strcmp(source, "jiffies") == 0;
    const bool set = adjtimex(&clock) >= 0 && !(clock.status & STA_UNSYNC);
    ls_doctor_report(examination, slow ? LS_HEALTH_NOTED : LS_HEALTH_FINE, "clock",
                     "boot with a quick clock source (tsc, kvm-clock): every measured time costs a microsecond here",
                     "source %s, %s", source[0] ? source : "unknown",
                     set ? "set by NTP" : "not known to be set by NTP (matters for logs only)");
}

void ls_doctor_examine_host(struct ls_examination *examination) {
    struct rlimit limit = {0, 0};
    struct statvfs shm;
    ls_doctor_report(examination, LS_HEALTH_FINE, "cores", NULL, "%lld usable", (long long)ls_launch_cores());
    examine_memory(examination);
    const bool has_shm = statvfs("/dev/shm", &shm) == 0 && access("/dev/shm", W_OK | X_OK) == 0;
    const double shm_mib = has_shm ? (double)shm.f_bavail * (double)shm.f_frsize / (1 << 20) : 0;
    if (has_shm)
        ls_doctor_report(examination, fine_if(shm_mib >= SHM_MIB_LEAST), "/dev/shm",
                         "give it more room (mount -o remount,size=1G /dev/shm; docker: --shm-size=1g)",
                         "%.0f MiB free", shm_mib);
    else
        ls_doctor_report(examination, LS_HEALTH_WRONG, "/dev/shm", "mount a tmpfs there that all may write (mode=1777)",
                         "cannot be written: %s", strerror(errno));
    getrlimit(RLIMIT_NOFILE, &limit);
    ls_doctor_report(examination, fine_if(limit.rlim_cur >= DESCRIPTORS_LEAST), "descriptors",
                     "raise it: ulimit -n 4096", "%llu may be open", (unsigned long long)limit.rlim_cur);
    examine_clocks(examination);
}

/* ---- GPUs ---- */

#ifdef LS_CUDA
static void examine_libraries(struct ls_examination *examination) {
    const struct ls_nccl *nccl;
    const struct ls_cublaslt *cublaslt;
    struct ls_error error;
    static const char fix[] = "install it, or name its folder in LOCKSTEP_CUDA_LIBRARIES";
    if (ls_library_nccl(&nccl, &error) == LS_OK)
        ls_doctor_report(examination, LS_HEALTH_FINE, "NCCL", NULL, "%s, %s", nccl->version, nccl->path);
    else
        ls_doctor_report(examination, LS_HEALTH_WRONG, "NCCL", fix, "%s", error.text);
    if (ls_library_cublaslt(&cublaslt, &error) == LS_OK)
        ls_doctor_report(examination, LS_HEALTH_FINE, "cuBLASLt", NULL, "%s, %s", cublaslt->version, cublaslt->path);
    else
        ls_doctor_report(examination, LS_HEALTH_WRONG, "cuBLASLt", fix, "%s", error.text);
#ifdef LS_CUDNN
    const struct ls_cudnn *cudnn;
    if (ls_library_cudnn(&cudnn, &error) == LS_OK)
        ls_doctor_report(examination, LS_HEALTH_FINE, "cuDNN", NULL, "%s, %s", cudnn->version, cudnn->path);
    else
        ls_doctor_report(examination, LS_HEALTH_FINE, "cuDNN", NULL,
                         "not here: attention in bf16 and fp16 is slower by our own kernels");
#endif
}
#endif

void ls_doctor_examine_gpus(struct ls_examination *examination) {
    char driver[256];
    struct ls_error error = {0};
    int count = 0;
    read_line("/proc/driver/nvidia/version", driver, sizeof driver);
    if (driver[0]) ls_doctor_report(examination, LS_HEALTH_FINE, "driver", NULL, "%s", driver);
    if (ls_device_count_cuda(&count, &error) != LS_OK) {
        /* With a driver there should be GPUs; without one this host computes on its CPUs. */
        ls_doctor_report(examination, driver[0] ? LS_HEALTH_WRONG : LS_HEALTH_FINE, "GPUs", "see the message",
                         "none: %s", error.text);
        return;
    }
    ls_doctor_report(examination, LS_HEALTH_FINE, "GPUs", NULL, "%d", count);
#ifdef LS_CUDA
    examine_libraries(examination);
#endif
}

/* ---- network ---- */

/* Connects to a port of its own at `address`, as a rank of this host would. */
static bool reaches_itself(const char *address, bool six) {
    struct sockaddr_storage name = {.ss_family = six ? AF_INET6 : AF_INET};
    void *place =
        six ? (void *)&((struct sockaddr_in6 *)&name)->sin6_addr : (void *)&((struct sockaddr_in *)&name)->sin_addr;
    socklen_t size = six ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
    int listener = socket(name.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int caller = socket(name.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool reached = false;
    if (listener >= 0 && caller >= 0 && inet_pton(name.ss_family, address, place) == 1 &&
        bind(listener, (struct sockaddr *)&name, size) == 0 && listen(listener, 1) == 0 &&
        getsockname(listener, (struct sockaddr *)&name, &size) == 0) {
        struct pollfd item = {caller, POLLOUT, 0};
        int cause = 0;
        socklen_t cause_size = sizeof cause;
        reached = connect(caller, (struct sockaddr *)&name, size) == 0 ||
                  (errno == EINPROGRESS && poll(&item, 1, REACH_MS) == 1 &&
                   getsockopt(caller, SOL_SOCKET, SO_ERROR, &cause, &cause_size) == 0 && cause == 0);
    }
    if (caller >= 0) close(caller);
    if (listener >= 0) close(listener);
    return reached;
}

static void describe_speed(const char *interface, char *text, size_t size) {
    char path[128], speed[32], mtu[32];
    snprintf(path, sizeof path, "/sys/class/net/%s/speed", interface);
    read_line(path, speed, sizeof speed);
    snprintf(path, sizeof path, "/sys/class/net/%s/mtu", interface);
    read_line(path, mtu, sizeof mtu);
    const long mbit = strtol(speed, NULL, 10);
    size_t used = 0;
    text[0] = 0;
    if (mbit > 0) used = (size_t)snprintf(text, size, ", %ld Mbit/s", mbit);
    if (mtu[0] && used < size) snprintf(text + used, size - used, ", MTU %s", mtu);
}

static void examine_hosts(struct ls_examination *examination) {
    const struct ls_hosts *hosts = &examination->allocation.hosts;
    for (int i = 0; i < hosts->count; i++) {
        char source[LS_ADDRESS_SIZE];
        if (ls_host_is_here(hosts->list[i].name)) continue;
        const bool known = ls_network_source(hosts->list[i].name, source);
        if (known && i >= 8) continue; /* those that are fine are alike */
        ls_doctor_report(examination, fine_if(known), "way",
                         "put the name into DNS or /etc/hosts of every host, and give this one a route there",
                         known ? "to %s from %s" : "to %s: %s", hosts->list[i].name,
                         known ? source : "the name cannot be resolved, or there is no route");
    }
}

void ls_doctor_examine_network(struct ls_examination *examination) {
    struct ls_address list[LS_ADDRESSES_MAX];
    const int count = ls_network_list(list, LS_ADDRESSES_MAX);
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    for (int i = 0; i < count; i++) {
        char speed[64];
        describe_speed(list[i].interface, speed, sizeof speed);
        const bool reached = reaches_itself(list[i].text, list[i].six);
        ls_doctor_report(examination, fine_if(reached), "network",
                         "let the firewall pass connections of this host to itself", "%s: %s%s%s", list[i].interface,
                         list[i].text, speed, reached ? "" : ", but connections to it fail");
    }
    const bool known = ls_host_is_here(host);
    ls_doctor_report(examination, fine_if(known && count > 0), "name", "put this host's name into DNS or /etc/hosts",
                     "%s", host);
    examine_hosts(examination);
}

/* ---- the file system of the run directory ---- */

static const char *name_file_system(long type, bool *shared) {
    static const struct {
        long type;
        const char *name;
        bool shared;
    } known[] = {{EXT4_SUPER_MAGIC, "ext4", false},
                 {XFS_SUPER_MAGIC, "XFS", false},
                 {BTRFS_SUPER_MAGIC, "btrfs", false},
                 {TMPFS_MAGIC, "tmpfs (in memory)", false},
                 {OVERLAYFS_SUPER_MAGIC, "overlay (of a container)", false},
                 {NFS_SUPER_MAGIC, "NFS", true},
                 {0x0BD00BD0, "Lustre", true},
                 {0x47504653, "GPFS", true},
                 {0x19830326, "BeeGFS", true},
                 {CEPH_SUPER_MAGIC, "CephFS", true},
                 {0x65735546, "FUSE", true},
                 {0x01021997, "9p", true},
                 {0xFF534D42, "CIFS", true}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].type == type) {
            *shared = known[i].shared;
            return known[i].name;
        }
    *shared = true; /* not known to be local */
    return "unknown kind";
}

/* The nearest folder that is there. */
static void existing_folder(const char *path, char folder[PATH_MAX]) {
    snprintf(folder, PATH_MAX, "%s", path);
    while (access(folder, F_OK) != 0) {
        char *slash = strrchr(folder, '/');
        if (!slash) snprintf(folder, PATH_MAX, ".");
        if (slash == folder) folder[1] = 0;
        if (slash && slash != folder) *slash = 0;
    }
}

/* Writes, locks and fsyncs a small file; seconds of the fsync, or -1 with the failing call in `failed`. */
static double try_file(const char *folder, const char **failed) {
    char path[PATH_MAX + 32], bytes[4096] = {0};
    struct timespec begin, end;
    snprintf(path, sizeof path, "%s/.lockstep-doctor-XXXXXX", folder);
    int file = mkstemp(path);
    *failed = "cannot be written to";
    if (file < 0) return -1;
    *failed = NULL;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    if (write(file, bytes, sizeof bytes) != (ssize_t)sizeof bytes) *failed = "cannot be written to";
    if (!*failed && flock(file, LOCK_EX | LOCK_NB)) *failed = "has no file locks";
    if (!*failed && fsync(file)) *failed = "cannot make writes last (fsync)";
    clock_gettime(CLOCK_MONOTONIC, &end);
    close(file);
    unlink(path);
    return *failed ? -1 : (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) * 1e-9;
}

void ls_doctor_examine_files(struct ls_examination *examination) {
    char folder[PATH_MAX], full[PATH_MAX];
    struct statvfs space;
    struct statfs kind;
    existing_folder(examination->run_dir, folder);
    if (!realpath(folder, full) || statvfs(full, &space) || statfs(full, &kind)) {
        ls_doctor_report(examination, LS_HEALTH_WRONG, "disk", "choose another --run-dir", "cannot look at %s: %s",
                         folder, strerror(errno));
        return;
    }
    const double gib = (double)space.f_bavail * (double)space.f_frsize / (1 << 30);
    ls_doctor_report(examination, fine_if(gib >= SPACE_GIB_LEAST), "disk", "make room, or choose another --run-dir",
                     "%.1f GiB free in %s", gib, full);
    const char *failed;
    bool shared;
    const char *name = name_file_system((long)kind.f_type, &shared);
    const double seconds = try_file(full, &failed);
    ls_doctor_report(examination, fine_if(!failed), "files", "choose a --run-dir on a file system that can do this",
                     failed ? "%s: the folder %s" : "%s, a small file lasts after %s%.1f ms", name,
                     failed ? failed : "", seconds * 1e3);
    if (examination->allocation.elsewhere && !shared)
        ls_doctor_report(
            examination, LS_HEALTH_NOTED, "files", "choose a --run-dir that all hosts see (NFS, Lustre, ...)",
            "%s mostly belongs to one host alone, and there are others: a run will look before it starts", name);
}

/* ---- Slurm ---- */

void ls_doctor_examine_slurm(struct ls_examination *examination) {
    const struct ls_allocation *allocation = &examination->allocation;
    const bool srun = ls_launch_has_program("srun");
    if (!srun && !allocation->slurm.job) return;
    FILE *pipe = srun ? popen("timeout 10 srun --mpi=list 2>&1", "re") : NULL;
    bool pmix = false, answers = false;
    for (char line[256]; pipe && fgets(line, sizeof line, pipe);) {
        answers = answers || strstr(line, "plugin");
        pmix = pmix || strstr(line, "pmix");
    }
    if (pipe) pclose(pipe);
    if (!allocation->slurm.job) {
        ls_doctor_report(examination, LS_HEALTH_FINE, "Slurm", NULL, "%s; this is no job",
                         !answers ? "its commands are here, and no Slurm answers"
                         : pmix   ? "with pmix"
                                  : "without pmix");
        return;
    }
    struct ls_slurm slurm = allocation->slurm;
    ls_slurm_ask_times(&slurm);
    char left[64] = "";
    if (slurm.end_time) snprintf(left, sizeof left, ", %lld s left", (long long)(slurm.end_time - (int64_t)time(NULL)));
    ls_doctor_report(examination, srun ? LS_HEALTH_FINE : LS_HEALTH_WRONG, "Slurm", "put srun into PATH",
                     "job %lld on %d host%s, %lld rank%s%s, %s pmix", (long long)slurm.job, allocation->hosts.count,
                     allocation->hosts.count == 1 ? "" : "s", (long long)allocation->ranks,
                     allocation->ranks == 1 ? "" : "s", left, pmix ? "with" : "without");
}
