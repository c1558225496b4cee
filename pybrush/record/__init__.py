"""The record: what a training run leaves on disk so that samples can be forgotten later."""

from pybrush.record.info import RecordInfo
from pybrush.record.plan import RecordPlan
from pybrush.record.queue import QueueEntry
from pybrush.record.record import Record
from pybrush.record.requests import RequestInfo
from pybrush.record.verify import Verification

__all__ = ["QueueEntry", "Record", "RecordInfo", "RecordPlan", "RequestInfo", "Verification"]
