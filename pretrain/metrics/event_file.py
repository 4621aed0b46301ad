"""The event file of TensorBoard that a session writes."""

import os
import re
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from data_pipeline.files import create_file, write_all

_NAME = re.compile(r"events\.out\.tfevents\.(\d{10})\..+")
"""Seconds since 1970, then host and process."""


class EventFile:
    """TensorBoard reads the event files of a folder in the order of their names, which begin with a time, and a session
    that it reads too early hides what it should have continued. So a new file is dated after all that are there,
    whatever the clock of this host says.

    Every event is on its way to the disk when a method returns. All of them may raise OSError.
    """

    def __init__(self, folder: Path, first_step: int | None) -> None:
        """It begins a new file; events of older ones from `first_step` on are hidden."""
        folder.mkdir(exist_ok=True)  # not its parents: a run folder that is gone is not made again
        name = f"events.out.tfevents.{_date(folder):010}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = create_file(folder / name)
        self._records = RecordWriter(self)
        self._add(Event(step=first_step, file_version="brain.Event:2"))
        if first_step is not None:
            self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def was_removed(self) -> bool:
        """It tells whether what is written is for nobody."""
        return os.fstat(self._file.fileno()).st_nlink == 0

    def add(self, summary: Summary, step: int) -> None:
        """It writes one event."""
        self._add(Event(step=step, summary=summary))

    def close(self) -> None:
        """It ends the file."""
        self._file.close()

    def write(self, record: bytes) -> None:
        """It takes what TensorBoard's writer of records has made of an event."""
        write_all(self._file.fileno(), record)

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def _date(folder: Path) -> int:
    """It returns the present second, or the one after the newest file's."""
    names = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return max([int(time.time()), *(int(name[1]) + 1 for name in names if name)])
