# Sourced after hosts.sh and lib.sh: a Slurm of its own over virtual hosts, h1 with the controller, h2 .. as nodes of two CPUs.
#
#   slurm_up N          starts munged, slurmctld and N slurmd over hosts_up N+1; everything is in $work/slurm
#   slurm COMMAND...    runs a command of Slurm's on h1
#   slurm_state JOB     the state of a job: PENDING, RUNNING, COMPLETED, ...; of an array those of its tasks
#   slurm_until JOB STATE SECONDS
# The daemons end with the process namespace that hosts_enter made.

slurm_missing() {
    local program
    for program in slurmctld slurmd sbatch srun munged; do
        PATH=$PATH:/usr/sbin:/sbin command -v $program >/dev/null || { echo "there is no $program (Debian: slurm-wlm, munge)"; return; }
    done
    mountpoint -q /sys/fs/cgroup || echo "nothing is mounted at /sys/fs/cgroup, without which slurmd does not start"
}

slurm_up() { # N
    local i folder=$work/slurm
    export PATH=$PATH:/usr/sbin:/sbin SLURM_CONF=$folder/slurm.conf
    mkdir -p "$folder"/{state,spool,log,munge}
    chmod 0700 "$folder/munge"
    chmod 755 "$work" "$folder"
    (umask 077 && head -c 128 /dev/urandom >"$folder/munge/key")
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed" 2>>"$folder/log/start.log"
    cat >"$SLURM_CONF" <<CONF
ClusterName=virtual
SlurmctldHost=h1(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
JobRequeue=1
KillWait=10
SlurmdTimeout=6
ReturnToService=2
OverTimeLimit=0
MpiDefault=none
CONF
    for ((i = 2; i <= $1 + 1; i++)); do
        echo "NodeName=h$i NodeAddr=10.77.0.$i CPUs=2 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=2000 State=UNKNOWN"
    done >>"$SLURM_CONF"
    echo "PartitionName=all Nodes=ALL Default=YES MaxTime=60 State=UP" >>"$SLURM_CONF"
    echo "PMIxCliTmpDirBase=/dev/shm" >"$folder/mpi.conf"
    on h1 slurmctld -f "$SLURM_CONF" </dev/null >>"$folder/log/start.log" 2>&1
    for ((i = 2; i <= $1 + 1; i++)); do
        mkdir -p "$folder/spool/h$i"
        on "h$i" slurmd -f "$SLURM_CONF" -N "h$i" </dev/null >>"$folder/log/start.log" 2>&1
    done
    for ((i = 0; i < 200; i++)); do
        [ "$(slurm sinfo -h -t idle -o %D 2>/dev/null)" = "$1" ] && return 0
        sleep 0.1
    done
    tail -n 5 "$folder"/log/*.log >&2
    return 1
}

slurm() { on h1 "$@"; }
slurm_state() { slurm scontrol show job "$1" 2>/dev/null | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p' | sort -u; }
slurm_until() { # JOB STATE SECONDS: an extended regular expression for the state
    local i
    for ((i = 0; i < $3 * 5; i++)); do
        [[ $(slurm_state "$1") =~ ^($2)$ ]] && return 0
        sleep 0.2
    done
    echo "job $1 is $(slurm_state "$1"), not $2, after $3 s"
    return 1
}
