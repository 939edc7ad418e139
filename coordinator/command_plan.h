/* `lockstep plan`: what a run needs and how long a step takes, before it is queued (docs/plan.md). */
#ifndef LS_COORDINATOR_COMMAND_PLAN_H
#define LS_COORDINATOR_COMMAND_PLAN_H

/* Runs the command; argv[0] is its name. Returns the exit code, after printing the last line on failure: LS_MEMORY when
 * the run does not fit. */
int ls_command_plan(int argc, char **argv);

#endif
