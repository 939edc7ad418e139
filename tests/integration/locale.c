/* A library that takes the user's locale over, as a preloaded one may before main() and MPI's in MPI_Init. */
#include <locale.h>

int PMPI_Init_thread(int *argc, char ***argv, int required, int *provided) __attribute__((weak));
int MPI_Init_thread(int *argc, char ***argv, int required, int *provided);

__attribute__((constructor)) static void take_over(void) {
    setlocale(LC_ALL, "");
}

int MPI_Init_thread(int *argc, char ***argv, int required, int *provided) {
    const int status = PMPI_Init_thread(argc, argv, required, provided);
    take_over();
    return status;
}
