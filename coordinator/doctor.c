/* The command, and what a run needs of this installation. */
#define _GNU_SOURCE
#include "coordinator/doctor.h"

#include "common/status.h"
#include "coordinator/command_line.h"
#include "worker/device/device.h"

#include <cblas.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

enum { OPTION_RUN_DIR = 256, OPTION_SECONDS, RANKS_MAX = 1 << 20 };

/* Keys of the launcher can be set without a configuration of a run; this stands for the rest of it. */
static const char BASE[] = "name: doctor\n"
                           "model: {model_type: gpt2, hidden_size: 1, num_hidden_layers: 1, num_attention_heads: 1}\n"
                           "data: {train: [{path: \"synthetic:2\"}], sequence_length: 1}\n"
                           "train: {steps: 1, global_batch_size: 1, micro_batch_size: 1}\n";

static const struct argp_option options_table[] = {
    {"ranks", LS_COMMAND_RANKS, "RANKS", 0,
     "Test the cluster with so many workers; else Slurm's tasks or the hostfile's slots", 0},
    {"hostfile", LS_COMMAND_HOSTFILE, "FILE", 0, "Test these hosts, a line each: HOST slots=N", 0},
    {"run-dir", OPTION_RUN_DIR, "DIR", 0, "Look at the file system of this folder; else of the current one", 0},
    {"seconds", OPTION_SECONDS, "S", 0, "How long hosts measure what is between them; else 10", 0},
    {"set", LS_COMMAND_SET, "KEY=VALUE", 0, "Set a key of launcher or coordinator; may be given again", 0},
    {0}};

struct request {
    struct ls_command_common common;
    int64_t seconds;
    const char *run_dir;
};

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    struct request *request = state->input;
    switch (key) {
    case OPTION_RUN_DIR: request->run_dir = argument; return 0;
    case OPTION_SECONDS: request->seconds = ls_command_number(state, "--seconds", argument, 1, 3600); return 0;
    case ARGP_KEY_ARG: argp_error(state, "'%s' is not expected: there are only options", argument); return 0;
    case ARGP_KEY_END: return 0; /* without a CONFIG */
    default: return ls_command_common_option(key, argument, state, &request->common);
    }
}

void ls_doctor_report(struct ls_examination *examination, enum ls_health health, const char *what, const char *fix,
                      const char *format, ...) {
    static const char *const words[] = {"ok", "note", "WRONG"};
    fprintf(examination->out, "%-5s %-12s ", words[health], what);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(examination->out, format, arguments);
    va_end(arguments);
    fputc('\n', examination->out);
    if (health != LS_HEALTH_FINE && fix) fprintf(examination->out, "      %-12s fix: %s\n", "", fix);
    examination->wrong += health == LS_HEALTH_WRONG;
    fflush(examination->out);
}

static enum ls_health fine_if(bool fine) {
    return fine ? LS_HEALTH_FINE : LS_HEALTH_WRONG;
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

/* True when there is an mpirun of Open MPI. */
static bool examine_mpi(struct ls_examination *examination) {
    char line[256] = "";
    if (ls_launch_has_program("mpirun")) first_line("timeout 10 mpirun --version 2>/dev/null", line, sizeof line);
    const bool open_mpi = strstr(line, "Open MPI") != NULL;
    ls_doctor_report(examination, fine_if(open_mpi), "MPI",
                     "install Open MPI (Debian: apt-get install openmpi-bin libopenmpi-dev) and put mpirun into PATH",
                     "%s",
                     line[0]                           ? line
                     : ls_launch_has_program("mpirun") ? "mpirun does not say its version within 10 s"
                                                       : "no mpirun in PATH");
    if (geteuid() == 0)
        ls_doctor_report(examination, LS_HEALTH_FINE, "user", NULL,
                         "root: the launcher gives Open MPI its two permission variables");
    else
        ls_doctor_report(examination, LS_HEALTH_FINE, "user", NULL, "uid %u", (unsigned)geteuid());
    return open_mpi;
}

static bool examine_worker(struct ls_examination *examination, char path[PATH_MAX]) {
    const bool found = ls_launch_find_worker(path, PATH_MAX, NULL) == LS_OK;
    ls_doctor_report(examination, fine_if(found), "worker",
                     "build both programs ('make') or install both ('make install')", "%s",
                     found ? path : "lockstep-worker is not beside lockstep");
    return found;
}

static void examine_cpu(struct ls_examination *examination) {
    struct ls_device *device = NULL;
    struct ls_error error = {0};
    if (ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, &error) != LS_OK) {
        ls_doctor_report(examination, LS_HEALTH_WRONG, "CPU", "see the message", "%s", error.text);
        return;
    }
    const bool openmp = openblas_get_parallel() == OPENBLAS_OPENMP;
    ls_doctor_report(examination, fine_if(openmp), "CPU",
                     "install the OpenMP variant (Debian: apt-get install libopenblas0-openmp libopenblas-openmp-dev) "
                     "and build again",
                     "%s%s", ls_device_numerics_id(device), openmp ? "" : "; OpenBLAS has threads of its own");
    ls_device_destroy(device);
}

static void examine_zeromq(struct ls_examination *examination) {
    int major, minor, patch;
    zmq_version(&major, &minor, &patch);
    const bool curve = zmq_has("curve"),
               recent = major > 4 || (major == 4 && (minor > 3 || (minor == 3 && patch >= 3)));
    ls_doctor_report(examination, fine_if(curve && recent), "ZeroMQ",
                     "install libzmq 4.3.3 or newer built with libsodium (Debian: apt-get install libzmq5)",
                     "%d.%d.%d, %s CURVE encryption", major, minor, patch, curve ? "with" : "without");
}

static void examine(struct ls_examination *examination) {
    char worker[PATH_MAX] = "";
    const bool mpi = examine_mpi(examination), found = examine_worker(examination, worker);
    examine_cpu(examination);
    examine_zeromq(examination);
    ls_doctor_examine_gpus(examination);
    ls_doctor_examine_host(examination);
    ls_doctor_examine_files(examination);
    ls_doctor_examine_network(examination);
    ls_doctor_examine_slurm(examination);
    if (!mpi || !found) return;
    const struct ls_launch_options options = {.type = examination->config->launcher.type,
                                              .config = examination->config,
                                              .allocation = &examination->allocation,
                                              .cores = ls_launch_cores(),
                                              .root = geteuid() == 0,
                                              .transport_is_chosen = getenv("OMPI_MCA_btl") || getenv("OMPI_MCA_pml"),
                                              .inherited = environ,
                                              .worker = worker};
    ls_doctor_examine_cluster(examination, &options);
}

int ls_command_doctor(int argc, char **argv) {
    const struct argp argp = {
        .options = options_table,
        .parser = parse_option,
        .doc =
            "Looks at what a run needs of this host: what was found, what is wrong, the fix. With several hosts (-n, "
            "--hostfile, a Slurm job) it starts ranks there and names the slow host or link."};
    struct request request = {.common = {.ranks_max = RANKS_MAX}, .seconds = 10};
    const struct ls_command_common *common = &request.common;
    struct ls_error error = {0};
    ls_command_parse(&argp, argc, argv, &request);
    struct ls_examination examination = {
        .out = stdout, .run_dir = request.run_dir ? request.run_dir : ".", .seconds = (double)request.seconds};
    examination.config = calloc(1, sizeof *examination.config);
    if (!examination.config) return ls_report_exit(LS_MEMORY, "no memory for the configuration");
    enum ls_code code = ls_config_parse(BASE, strlen(BASE), "doctor", common->settings, common->settings_count,
                                        examination.config, &error);
    if (code == LS_OK)
        code = ls_allocation_find(examination.config, common->ranks, common->hostfile, getenv, &examination.allocation,
                                  &error);
    if (code == LS_OK) examine(&examination);
    ls_allocation_release(&examination.allocation);
    free(examination.config);
    if (code != LS_OK) return ls_report_exit(code, error.text);
    char reason[64];
    snprintf(reason, sizeof reason, "%d thing%s wrong", examination.wrong, examination.wrong == 1 ? " is" : "s are");
    return ls_report_exit(examination.wrong ? LS_ERROR : LS_OK, reason);
}
