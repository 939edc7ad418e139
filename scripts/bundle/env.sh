# The environment of a bundle: `. FOLDER/env.sh` in bash, then lockstep, mpirun and lockstep-worker are on the path.
# bin/lockstep does it by itself. LOCKSTEP_MPI=site keeps the bundle's Open MPI out: mpirun and libmpi.so.40 are the
# machine's own then.
LOCKSTEP_BUNDLE=${LOCKSTEP_BUNDLE:-$(cd "$(dirname "${BASH_SOURCE:-$0}")" && pwd)}
lockstep_has() { # VERSION NEEDED: VERSION is NEEDED or newer
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}
lockstep_libc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d ' ' -f 2)
lockstep_needed=$(cat "$LOCKSTEP_BUNDLE/lib/GLIBC")
if ! lockstep_has "${lockstep_libc:-0}" "$lockstep_needed"; then
    echo "lockstep: this machine's C library is ${lockstep_libc:-not glibc}, the bundle needs glibc $lockstep_needed or newer. Build a bundle ('make bundle') on a system as old as this one, or run it in a container that is newer." >&2
    exit 1
fi
lockstep_machine=$(cat "$LOCKSTEP_BUNDLE/lib/MACHINE")
if [ "$(uname -m)" != "$lockstep_machine" ]; then
    echo "lockstep: this machine is $(uname -m), the bundle is for $lockstep_machine. Build one ('make bundle') on a machine of this kind." >&2
    exit 1
fi
if [ "$lockstep_machine" = x86_64 ] && { ! grep -qw avx2 /proc/cpuinfo || ! grep -qw fma /proc/cpuinfo; }; then
    echo "lockstep: this processor has no AVX2 and FMA (x86-64-v3), for which the bundle was built. Build one with 'make bundle BUNDLE_ARCH=x86-64'." >&2
    exit 1
fi
lockstep_path=$LOCKSTEP_BUNDLE/lib
# The machine's C++ library unless it is older than what is needed.
lockstep_cxx=$({ ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null; } | awk '/libstdc\+\+\.so\.6 .*(x86-64|AArch64)/ {print $NF; exit}')
lockstep_newest=$([ -n "$lockstep_cxx" ] && grep -aoE 'GLIBCXX_[0-9]+\.[0-9]+\.[0-9]+' "$lockstep_cxx" | sort -uV | tail -n 1 | cut -c 9-)
if ! lockstep_has "${lockstep_newest:-0}" "$(cat "$LOCKSTEP_BUNDLE/lib/GLIBCXX")"; then lockstep_path=$lockstep_path:$LOCKSTEP_BUNDLE/lib/fallback; fi
if [ "${LOCKSTEP_MPI:-}" != site ]; then
    lockstep_path=$lockstep_path:$LOCKSTEP_BUNDLE/lib/mpi
    export OPAL_PREFIX="$LOCKSTEP_BUNDLE/mpi"
    export PMIX_INSTALL_PREFIX="$LOCKSTEP_BUNDLE/mpi/pmix" PMIX_MCA_mca_base_component_path="$LOCKSTEP_BUNDLE/mpi/pmix/lib/pmix"
    PATH=$LOCKSTEP_BUNDLE/mpi/bin:$PATH
    # A site may choose components of its own Open MPI; one that this has not would end every run.
    unset OMPI_MCA_mca_component_path OMPI_MCA_mca_base_component_path
    for lockstep_name in $(env | sed -n 's/^\(OMPI_MCA_[a-z]*\)=[^^].*/\1/p'); do
        eval "lockstep_value=\$$lockstep_name"
        for lockstep_component in $(echo "$lockstep_value" | tr ',' ' '); do
            ls "$LOCKSTEP_BUNDLE"/mpi/lib/*/openmpi/lib/*/"mca_${lockstep_name#OMPI_MCA_}_$lockstep_component.so" >/dev/null 2>&1 && continue
            echo "lockstep: $lockstep_name=$lockstep_value is left out: the bundle's Open MPI has no $lockstep_component (LOCKSTEP_MPI=site takes the machine's)" >&2
            unset "$lockstep_name"
            break
        done
    done
    unset lockstep_name lockstep_value lockstep_component
fi
export PATH="$LOCKSTEP_BUNDLE/bin:$PATH" LD_LIBRARY_PATH="$lockstep_path${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" LOCKSTEP_BUNDLE
unset lockstep_libc lockstep_needed lockstep_machine lockstep_path lockstep_cxx lockstep_newest
