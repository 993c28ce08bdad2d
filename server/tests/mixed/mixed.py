"""kazoo's part in one lock and one election, beside Corral's own and Curator's.

usage: mixed.py HOSTS lock|elect PATH COUNTER ROUNDS [PATTERN...]

Counting is a read and a write of any version: only the lock keeps two clients apart. PATTERN: other libraries' names that
count as contenders.
"""

import sys

from kazoo.client import KazooClient

PATIENCE_S = 90
hosts, what, path, counter, rounds = sys.argv[1:6]
patterns = sys.argv[6:]

zk = KazooClient(hosts=hosts, timeout=20)
zk.start(timeout=PATIENCE_S)


def count():
    zk.sync(counter)
    data, _ = zk.get(counter)
    zk.set(counter, str(int(data) + 1).encode())


print("ready", flush=True)
sys.stdin.read(1)
for _ in range(int(rounds)):
    if what == "elect":
        election = zk.Election(path, "kazoo")
        # Election makes its lock without the option.
        election.lock = zk.Lock(path, "kazoo", extra_lock_patterns=patterns)
        election.run(count)
    else:
        lock = zk.Lock(path, "kazoo", extra_lock_patterns=patterns)
        assert lock.acquire(timeout=PATIENCE_S)
        try:
            count()
        finally:
            lock.release()
zk.stop()
zk.close()
print("done", flush=True)
