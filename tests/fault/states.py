"""Faults of the live state: it goes back in time, is full, or is gone."""

import os
import resource
import shutil
from pathlib import Path

from taskyard.compose.valkey import Valkey
from tests.fault.fleet import Fleet
from tests.fault.processes import AOF_BACK_S
from tests.fault.proxy import Proxy

_LOST_S = 1.0
_FULL_S = 4.0
# What still fits on the disk that is about to be full: a moment's writes.
_ROOM_BYTES = 256 << 10
# What a wiped cell may lose of what had ended: outcomes that were not relayed. All others are on `results`.
_WIPED_BACK_S = 5.0


def aof_cut(system: Fleet) -> None:
    """Valkey comes back without the last second of its append-only file.

    Its size a second before the kill is where one of its writes ended, so the cut is between two commands; that of a
    transaction which is then open is left to `aof-load-truncated`.
    """
    # A rewrite would put what is cut into another file.
    system.valkey.ask("CONFIG", "SET", "auto-aof-rewrite-percentage", 0)
    system.until(lambda: not system.valkey.ask("INFO", "persistence")["aof_rewrite_in_progress"], "no rewrite runs")
    file = _aof(system.valkey)
    with system.disturbance("append-only file cut", "rollback", back_s=AOF_BACK_S):
        size = file.stat().st_size
        system.flow(_LOST_S)
        system.valkey.kill()
        os.truncate(file, size)
        system.valkey.start()


def _aof(valkey: Valkey) -> Path:
    """The part of the append-only file that is being written."""
    return max((valkey.directory / "appendonlydir").glob("*.incr.aof"), key=lambda file: file.stat().st_mtime)


def lagging_replica(system: Fleet) -> None:
    """The primary dies, a replica that has not heard from it for a second takes over; at first it is read-only."""
    link = system.proxies["replication"] = Proxy(system.valkey.port)
    replica = Valkey(system.directory / "replica")
    system.former.append(replica)
    replica.start()
    replica.ask("REPLICAOF", "127.0.0.1", link.port)
    system.until(lambda: _is_in_step(replica), "the replica is in step")
    system.flow(2.0)
    with system.disturbance("lagging replica promoted", "rollback", back_s=0.5):
        link.refuse()
        system.flow(_LOST_S)
        system.valkey.kill()
        system.proxies["valkey"].aim(replica.port)
        system.flow(0.5)  # clients are refused: READONLY
        replica.ask("REPLICAOF", "NO", "ONE")
    system.former = [system.valkey]
    system.valkey = system.ledger.server = replica


def _is_in_step(replica: Valkey) -> bool:
    told = replica.ask("INFO", "replication")
    return told["master_link_status"] == "up" and not told["master_sync_in_progress"]


def disk_full(system: Fleet) -> None:
    """The append-only file cannot grow: a limit on the size of the process's files (RLIMIT_FSIZE), lifted again."""
    pid = system.valkey.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    with system.disturbance("disk full"):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (_aof(system.valkey).stat().st_size + _ROOM_BYTES, hard))
        try:
            system.until(lambda: _cannot_write(system.valkey), "the disk is full")
            system.flow(_FULL_S)
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


def _cannot_write(valkey: Valkey) -> bool:
    return valkey.ask("INFO", "persistence")["aof_last_write_status"] == "err"


def memory_full(system: Fleet) -> None:
    """Valkey refuses what needs memory; what frees it goes on."""
    with system.disturbance("maxmemory"):
        system.valkey.ask("CONFIG", "SET", "maxmemory", int(system.valkey.ask("INFO", "memory")["used_memory"]) // 2)
        system.flow(_FULL_S)
        system.valkey.ask("CONFIG", "SET", "maxmemory", 0)


def wiped(system: Fleet) -> None:
    """Everything that Valkey had is gone while 1,000 long tasks run: emptied, killed, started on an empty directory."""
    with system.disturbance("valkey wiped", "rollback", back_s=_WIPED_BACK_S):
        system.valkey.ask("FLUSHALL")
        system.valkey.kill()
        shutil.rmtree(system.valkey.directory)
        system.valkey.start()
