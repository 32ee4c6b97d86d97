"""The ledger of storages that the trace and the profile share."""

from mem_gpt_cli.ledger.ledger import KernelBuffers, Ledger
from mem_gpt_cli.ledger.log import Curves, EventLog, Moment, Operation, Span

__all__ = ["Curves", "EventLog", "KernelBuffers", "Ledger", "Moment", "Operation", "Span"]
