"""What a run left, read again: the page for people and the audit for auditors: floor 7."""

from .audit import RunAudit as RunAudit
from .audit import audit_run as audit_run
from .folder import RunFolder as RunFolder
from .folder import RunFolderError as RunFolderError
from .folder import read_run as read_run
from .page import write_report as write_report
