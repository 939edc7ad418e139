/* lockstep-worker: the MPI program. */
int main(void) {
    return 2;
}
