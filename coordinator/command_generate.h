/* `lockstep generate`: continues a text with the model of a checkpoint or of any Hugging Face folder of a known family.
 */
#ifndef LS_COORDINATOR_COMMAND_GENERATE_H
#define LS_COORDINATOR_COMMAND_GENERATE_H

/* Runs the command; argv[0] is its name. Returns the exit code, after printing the last line on failure. */
int ls_command_generate(int argc, char **argv);

#endif
