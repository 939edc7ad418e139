/* lockstep: the command. */
int main(void) {
    return 2;
}
