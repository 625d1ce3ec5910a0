#!/usr/bin/env bash
# Makes this machine a Slurm cluster of one node with two cores, for tests/engines/test_slurm.py. Needs root and Debian;
# does nothing where a Slurm controller already answers.
set -euo pipefail
if sinfo >/dev/null 2>&1; then exit 0; fi
if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
fi
host=$(hostname -s)
install -d -o munge -g munge /run/munge /var/log/munge
if [[ ! -f /etc/munge/munge.key ]]; then
    (umask 077 && head -c 1024 /dev/urandom >/etc/munge/munge.key)
    chown munge: /etc/munge/munge.key
fi
pgrep -x munged >/dev/null || runuser -u munge -- "$(command -v munged)" --force
install -d /etc/slurm /var/lib/slurm/controller /var/lib/slurm/node /var/log/slurm
cat >/etc/slurm/slurm.conf <<CONF
ClusterName=mmbench
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
StateSaveLocation=/var/lib/slurm/controller
SlurmdSpoolDir=/var/lib/slurm/node
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurm/controller.log
SlurmdLogFile=/var/log/slurm/node.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
KillWait=30
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=tests Nodes=$host Default=YES MaxTime=30 State=UP
CONF
slurmctld
slurmd
for _ in $(seq 30); do
    if sinfo --noheader --format=%T 2>/dev/null | grep -q idle; then exit 0; fi
    sleep 1
done
echo "Slurm did not come up; see /var/log/slurm" >&2
exit 1
