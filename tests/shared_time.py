"""What two busy groups use that share their processor time: run where a test wants to know, as a program."""

from __future__ import annotations

# Prints why there are no groups, or what was used, by each, and what all were allowed meanwhile, in seconds.
MEASURE = """
import json, os, signal, time
from flame.model.isolation import Limits
from flame.shims.limits import Groups

SHARE = Limits(cpu_millis=200)
groups = Groups.find()
if groups.missing:
    raise SystemExit(print(json.dumps({"missing": groups.missing})))
shared = groups.within("shared", SHARE)
made = [shared.make(name, SHARE) for name in ("one", "other")]
pids = []
for group in made:
    pid = os.fork()
    if not pid:
        for folder in group.folders:
            (folder / "cgroup.procs").write_text("0")
        while True:
            pass
    pids.append(pid)
while sum(group.usage().cpu for group in made) < 0.4:
    time.sleep(0.05)
for pid in pids:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
used = [group.usage().cpu for group in made]
stat = (made[0].by_controller["cpu"].parent / "cpu.stat").read_text()
periods = int(dict(line.split() for line in stat.splitlines())["nr_periods"])
for group in made:
    group.remove()
shared.remove()
left = [str(folder) for group in made for folder in group.folders if folder.parent.exists()]
groups.remove()
print(json.dumps({"missing": "", "used": used, "allowed": periods * 0.02, "left": left}))
"""
SLACK = 0.1  # what each processor has been promised and not used, and what is only counted later
