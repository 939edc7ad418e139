/* `lockstep bench`: a scaling table (docs/operations.md). */
#ifndef LS_COORDINATOR_COMMAND_BENCH_H
#define LS_COORDINATOR_COMMAND_BENCH_H

/* Runs the command; argv[0] is its name. Returns the exit code. */
int ls_command_bench(int argc, char **argv);

#endif
