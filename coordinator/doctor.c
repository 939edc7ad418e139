/* Looking at the host. */
#define _GNU_SOURCE
#include "coordinator/doctor.h"

#include "common/status.h"
#include "coordinator/command_line.h"
#include "coordinator/launcher.h"
#include "worker/device/device.h"
#include "worker/memory/host_memory.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <zmq.h>

enum { DESCRIPTORS_LEAST = 256, SHM_MIB_LEAST = 64, SPACE_GIB_LEAST = 1, MEMORY_MIB_LEAST = 1024 };

struct examination {
    FILE *out;
    int wrong;
};

static void report(struct examination *examination, bool fine, const char *what, const char *fix, const char *format,
                   ...) __attribute__((format(printf, 5, 6)));
static void report(struct examination *examination, bool fine, const char *what, const char *fix, const char *format,
                   ...) {
    fprintf(examination->out, "%-5s %-12s ", fine ? "ok" : "WRONG", what);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(examination->out, format, arguments);
    va_end(arguments);
    fputc('\n', examination->out);
    if (fine) return;
    examination->wrong++;
    fprintf(examination->out, "      %-12s fix: %s\n", "", fix);
}

/* The first line that a command prints, or "" when it fails. */
static void first_line(const char *command, char *line, size_t size) {
    line[0] = 0;
    FILE *pipe = popen(command, "re");
    if (!pipe) return;
    if (!fgets(line, (int)size, pipe)) line[0] = 0;
    line[strcspn(line, "\n")] = 0;
    for (char rest[256]; fgets(rest, sizeof rest, pipe);)
        ;
    pclose(pipe);
}

static void examine_mpi(struct examination *examination) {
    char line[256] = "";
    struct ls_error error;
    if (ls_launch_find_mpirun(&error) == LS_OK) first_line("mpirun --version 2>/dev/null", line, sizeof line);
    bool open_mpi = strstr(line, "Open MPI") != NULL;
    report(examination, open_mpi, "MPI",
           "install Open MPI (Debian: apt-get install openmpi-bin libopenmpi-dev) and put mpirun into PATH", "%s",
           line[0] ? line : "no mpirun in PATH");
    if (geteuid() == 0)
        report(examination, true, "user", "", "root: the launcher gives Open MPI its two permission variables");
    else
        report(examination, true, "user", "", "uid %u", (unsigned)geteuid());
}

static void examine_worker(struct examination *examination) {
    char path[PATH_MAX] = "";
    struct ls_error error = {0};
    bool found = ls_launch_find_worker(path, sizeof path, &error) == LS_OK;
    report(examination, found, "worker", "build both programs ('make') or install both ('make install')", "%s",
           found ? path : "lockstep-worker is not beside lockstep");
}

static void examine_device(struct examination *examination) {
    struct ls_device *device = NULL;
    struct ls_error error = {0};
    if (ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, &error) != LS_OK) {
        report(examination, false, "CPU", "see the message", "%s", error.text);
        return;
    }
    const char *id = ls_device_numerics_id(device);
    bool openmp = strstr(id, "USE_OPENMP") != NULL;
    report(examination, openmp, "CPU",
           "install the OpenMP variant (Debian: apt-get install libopenblas0-openmp libopenblas-openmp-dev) and build "
           "again",
           "%s", id);
    ls_device_destroy(device);
}

static void examine_zeromq(struct examination *examination) {
    int major, minor, patch;
    zmq_version(&major, &minor, &patch);
    bool curve = zmq_has("curve"), recent = major > 4 || (major == 4 && (minor > 3 || (minor == 3 && patch >= 3)));
    report(examination, curve && recent, "ZeroMQ",
           "install libzmq 4.3.3 or newer built with libsodium (Debian: apt-get install libzmq5)",
           "%d.%d.%d, %s CURVE encryption", major, minor, patch, curve ? "with" : "without");
}

static void examine_host(struct examination *examination) {
    struct rlimit limit = {0, 0};
    struct statvfs shm, here;
    char folder[PATH_MAX] = ".";
    double memory_mib = (double)ls_host_memory_available() / (1 << 20);
    report(examination, true, "cores", "", "%lld usable", (long long)ls_launch_cores());
    report(examination, memory_mib >= MEMORY_MIB_LEAST, "memory", "end other programs, or use a host with more",
           "%.0f MiB available", memory_mib);
    bool has_shm = statvfs("/dev/shm", &shm) == 0;
    double shm_mib = has_shm ? (double)shm.f_bavail * (double)shm.f_frsize / (1 << 20) : 0;
    report(examination, shm_mib >= SHM_MIB_LEAST, "/dev/shm",
           "give it more room (mount -o remount,size=1G /dev/shm; docker: --shm-size=1g)", "%.0f MiB free", shm_mib);
    getrlimit(RLIMIT_NOFILE, &limit);
    report(examination, limit.rlim_cur >= DESCRIPTORS_LEAST, "descriptors", "raise it: ulimit -n 4096",
           "%llu may be open", (unsigned long long)limit.rlim_cur);
    bool has_here = statvfs(".", &here) == 0 && getcwd(folder, sizeof folder);
    double here_gib = has_here ? (double)here.f_bavail * (double)here.f_frsize / (1 << 30) : 0;
    report(examination, here_gib >= SPACE_GIB_LEAST, "disk", "make room, or choose another --run-dir",
           "%.1f GiB free in %s", here_gib, folder);
}

int ls_doctor_examine(FILE *out) {
    struct examination examination = {.out = out};
    examine_mpi(&examination);
    examine_worker(&examination);
    examine_device(&examination);
    examine_zeromq(&examination);
    examine_host(&examination);
    return examination.wrong;
}

int ls_command_doctor(int argc, char **argv) {
    const struct argp argp = {.doc = "Looks at what a run needs of this host: what was found, what is wrong, the fix."};
    ls_command_parse(&argp, argc, argv, NULL);
    int wrong = ls_doctor_examine(stdout);
    fflush(stdout);
    char reason[64];
    snprintf(reason, sizeof reason, "%d thing%s wrong with this host", wrong, wrong == 1 ? " is" : "s are");
    return ls_report_exit(wrong ? LS_ERROR : LS_OK, reason);
}
