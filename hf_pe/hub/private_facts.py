"""Define patterns of private facts: paths, private network addresses, e-mail addresses, names of this user and host.

The patterns match bytes and bound every repetition, so that their time grows only with the length of the text.
"""

import getpass
import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import get_token

_NAME = r"[\w.@\x80-\xff-]"
_DISK = (
    "home|Users|root|mnt|media|data|var|tmp|opt|srv|scratch|work|workspace|private|content|kaggle|gpfs|lustre|nfs|dbfs|"
    "Volumes"
)
_DRIVE = "Users|home|data|work|projects|Documents and Settings"
_HOST = r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}"
_SLASH = r"(?:\\{1,4}|/)"
FACTS: dict[str, tuple[str, str]] = {
    "absolute path": (
        "/",
        rf"/(?<![^A-Za-z][A-Za-z]:/)(?:(?<![\w./\\~-]/)|(?<=[ =]-[IL]/)|(?<=file:///))(?:{_DISK})/(?!\.{{1,3}}(?![\w-])){_NAME}{{1,255}}",
    ),
    "path of a drive": (
        r":\ :/Users :/home",
        rf"[A-Za-z]:(?<![A-Za-z0-9][A-Za-z]:){_SLASH}(?i:{_DRIVE}){_SLASH}{_NAME}{{1,255}}",
    ),
    "home path": (
        "~",
        rf"~(?<![\w./~\\-]~)(?:/|[a-z][a-z0-9_-]{{0,31}}/(?={_NAME}{{1,255}}/))(?=[A-Za-z0-9_]{{2}}){_NAME}{{2,255}}",
    ),
    "network path": (
        r"\\",
        rf"\\\\(?<![^\s\"'=(:,\[<`]\\\\)(?:{_HOST}\\|\\\\{_HOST}\\\\)[A-Za-z0-9][\w.$-]{{1,80}}",
    ),
    "address of a shared folder": (
        "smb:// cifs:// nfs:// afp:// sftp:// ftp:// ssh:// hdfs:// file://",
        rf"(?:(?:smb|cifs|nfs|afp|s?ftp|ssh|hdfs)://{_NAME}{{1,255}}|file://(?!\.|localhost/|/(?:{_DISK})/)/?{_NAME}{{1,255}}/)",
    ),
    "private address": (
        "10. 192.168. 172.",
        r"(?:10\.(?<![\d.]10\.)(?<![=~<>!v]=10\.)(?<!v10\.)\d{1,3}|192\.168(?<![\d.]192\.168)|172\.(?<![\d.]172\.)(?:1[6-9]|2\d|3[01]))"
        r"\.\d{1,3}\.\d{1,3}(?![\d.]{0,3}\d)",
    ),
}
"""For each kind of fact its literals, one of which is in every such fact, and its pattern."""
EMAIL = (
    "@",
    r"(?<![\w.+/-])(?!git@)[\w.+-]{1,64}@(?!users\.noreply\.)[\w-]{1,63}(?:\.[\w-]{1,63}){0,6}\.[A-Za-z]{2,24}\b",
)
GENERIC = {
    "root", "user", "users", "admin", "ubuntu", "debian", "runner", "jovyan", "vscode", "docker",
    "nobody", "home", "main", "test", "app", "data", "work",
    "localhost", "localdomain", "local", "host", "server", "node",
    "master", "default", "model", "models", "build", "python", "container",
}  # fmt: skip
"""Names of users and hosts that identify nobody."""


def names_here() -> dict[str, list[bytes]]:
    """Return the names of this user and host, apart from generic ones."""
    try:
        users = {getpass.getuser(), Path.home().name}
    except (OSError, KeyError, RuntimeError):
        users = set()
    hosts = {socket.gethostname(), socket.gethostname().partition(".")[0]}
    names = {"name of the user": users, "name of the host": hosts}
    return {kind: specific for kind, candidates in names.items() if (specific := _identifying(candidates))}


def _identifying(names: Iterable[str]) -> list[bytes]:
    return sorted(name.encode() for name in names if len(name) > 3 and name.lower() not in GENERIC)


def secrets_here() -> list[bytes]:
    """Return the secrets of this machine: the Hub token, and environment variables whose name says they are secret."""
    secret_name = re.compile(r"(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIALS?)$")
    values = {value for name, value in os.environ.items() if secret_name.search(name.upper())} | {get_token() or ""}
    return sorted(value.encode() for value in values if len(value) >= 12)
