#!/usr/bin/env bash
# The relocatable bundle: small enough, free of CUDA's libraries, and able to train where Open MPI, ZeroMQ and the other libraries are not installed.
source "$(dirname "$0")/lib.sh"
MB=1000000

built=$(dirname "$lockstep")
check "a bundle is made" scripts/bundle/make "$built" "$work/lockstep-bundle"
tar -C "$work" -cf - lockstep-bundle | xz -1 -T2 >"$work/packed.tar.xz"
size=$(stat -c %s "$work/packed.tar.xz")
if [ "$size" -le $((40 * MB)) ]; then ok "packed it has at most 40 MB"; else not_ok "packed it has at most 40 MB ($size bytes)"; fi
found=$(find "$work/lockstep-bundle" -name 'libcuda*' -o -name 'libcublas*' -o -name 'libcudnn*' -o -name 'libnccl*' -o -name 'libnvrtc*')
if [ -z "$found" ]; then ok "it holds no library of CUDA"; else not_ok "it holds no library of CUDA ($found)"; fi
mv "$work/lockstep-bundle" "$work/made-here"
mkdir "$work/elsewhere"
tar -C "$work/elsewhere" -xf "$work/packed.tar.xz"
bundle=$work/elsewhere/lockstep-bundle
rm -rf "$work/made-here"

# An older C library is refused with a reason, whatever the linker would have said.
cp "$bundle/lib/GLIBC" "$work/glibc"
echo 2.99 >"$bundle/lib/GLIBC"
expect 1 "C library is [0-9.]+, the bundle needs glibc 2.99" "an older C library is named" "$bundle/bin/lockstep" --version
cp "$work/glibc" "$bundle/lib/GLIBC"
echo pdp11 >"$bundle/lib/MACHINE"
expect 1 "this machine is $(uname -m), the bundle is for pdp11" "a machine of another kind is named" "$bundle/bin/lockstep" --version
uname -m >"$bundle/lib/MACHINE"

if ! unshare -m true 2>"$work/unshare"; then
    skip "it trains with the system's Open MPI and ZeroMQ hidden" "no mount namespaces here: $(head -c 100 "$work/unshare")"
    exit
fi

# Everything the bundle brings is hidden on this machine, but for what the shell's own tools are linked with.
cat >"$work/hidden" <<'HIDDEN'
set -euo pipefail
bundle=$1 work=$2
tools=$(ldd /bin/bash /bin/ls /bin/mount /usr/bin/grep /usr/bin/awk /usr/bin/sort 2>/dev/null | awk '$2 == "=>" {print $1}' | sort -u)
cache=$(/sbin/ldconfig -p)
hide() { [ ! -e "$1" ] || mount --bind "$2" "$1"; }
mkdir "$work/nothing"
for library in "$bundle"/lib/*.so* "$bundle"/lib/mpi/*.so*; do
    name=$(basename "$library")
    if grep -qxF "$name" <<<"$tools"; then continue; fi
    for path in $(awk -v name="$name" '$1 == name {print $NF}' <<<"$cache") /usr/lib/*/openblas-*/"$name" /usr/lib/*/pmix2/lib/"$name"; do
        hide "$path" /dev/null
    done
done
for folder in /usr/lib/*/openmpi /usr/lib/*/pmix2 /usr/share/openmpi /etc/openmpi /usr/local/cuda /usr/local/cuda-*; do hide "$folder" "$work/nothing"; done
for program in mpirun orterun orted; do hide "$(readlink -f "/usr/bin/$program")" /dev/null; done
cd /
for arguments in "--version" "run $bundle/configs/tiny-gpt2.yaml -n 2 --run-dir $work/run"; do
    env -i PATH=/usr/bin:/bin HOME="$work" OMPI_MCA_pml=ucx "$bundle/bin/lockstep" $arguments # as sites have it for their own Open MPI
done
if env -i PATH=/usr/bin:/bin "$3" --version; then echo "the system's libraries were not hidden"; exit 9; fi
HIDDEN
check "it trains on two ranks with the system's Open MPI, ZeroMQ and the rest hidden" unshare -m bash "$work/hidden" "$bundle" "$work" "$lockstep"
if grep -q '"kind": *"summary".*"ranks": *2' "$work/run/metrics.jsonl" 2>/dev/null; then ok "both ranks took part, to the end"; else not_ok "both ranks took part, to the end" "$work/check.log"; fi
expect 0 "OMPI_MCA_pml=ucx is left out: the bundle's Open MPI has no ucx" "what a site chooses for its own Open MPI is left out, and said" \
    env OMPI_MCA_pml=ucx "$bundle/bin/lockstep" --version
check "what the bundle's has is not" bash -c "[ \"\$(OMPI_MCA_pml=ob1 $bundle/bin/lockstep --version 2>&1)\" = \"\$($bundle/bin/lockstep --version 2>&1)\" ]"
expect 0 "a text of|steps|train" "it lists its keys" "$bundle/bin/lockstep" config --keys
