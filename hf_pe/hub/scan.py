"""Before anything goes out: secrets and private facts in the files, by name and place."""

import getpass
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from huggingface_hub import get_token

from hf_pe.errors import UsageError
from hf_pe.plans import Frozen

_WORD, _ENDS = r"(?<![A-Za-z0-9_-])", r"(?![A-Za-z0-9_-])"
SECRETS: dict[str, str] = {
    "Hugging Face token": r"hf_[A-Za-z0-9]{30,}",
    "Hugging Face organization token": r"api_org_[A-Za-z0-9]{30,}",
    "OpenAI key": r"sk-(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]{20,}T3BlbkFJ[A-Za-z0-9_-]{20,}",
    "Anthropic key": r"sk-ant-[a-z0-9]+-[A-Za-z0-9_-]{32,}",
    "OpenRouter key": r"sk-or-v1-[0-9a-f]{64}",
    "Groq key": r"gsk_[A-Za-z0-9]{48,}",
    "xAI key": r"xai-[A-Za-z0-9]{60,}",
    "Perplexity key": r"pplx-[A-Za-z0-9]{40,}",
    "Replicate token": r"r8_[A-Za-z0-9]{37,}",
    "RunPod key": r"rpa_[A-Z0-9]{30,}[A-Za-z0-9]*",
    "Weights & Biases key": r"wandb_v1_[A-Za-z0-9_]{40,}",
    "Pinecone key": r"pcsk_[A-Za-z0-9_]{40,}",
    "AWS access key id": r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}",
    "Google API key": r"AIza[A-Za-z0-9_-]{35}",
    "Google OAuth client secret": r"GOCSPX-[A-Za-z0-9_-]{28}",
    "Google OAuth access token": r"ya29\.[A-Za-z0-9_-]{30,}",
    "GitHub personal token": r"ghp_[A-Za-z0-9]{36}",
    "GitHub fine-grained token": r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}",
    "GitHub app or OAuth token": r"gh[ousr]_[A-Za-z0-9]{36,}",
    "GitLab token": r"gl(?:pat|dt|rt|ptt|ft|imt|agent|soat)-[A-Za-z0-9_-]{20,}",
    "Bitbucket app password": r"ATBB[A-Za-z0-9]{32}",
    "Atlassian token": r"ATATT3[A-Za-z0-9_=-]{50,}",
    "npm token": r"npm_[A-Za-z0-9]{36}",
    "PyPI token": r"pypi-AgEI[A-Za-z0-9_-]{50,}",
    "RubyGems key": r"rubygems_[0-9a-f]{48}",
    "Docker Hub token": r"dckr_(?:pat|oat)_[A-Za-z0-9_-]{27,}",
    "Slack token": r"xox[abeoprs]-[A-Za-z0-9-]{20,}",
    "Slack webhook": r"https://hooks\.slack\.com/services/T[A-Za-z0-9]+/B[A-Za-z0-9]+/[A-Za-z0-9]+",
    "Discord webhook": r"https://(?:\w+\.)?discord(?:app)?\.com/api/webhooks/\d+/[A-Za-z0-9_-]{60,}",
    "Discord bot token": r"[MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,}",
    "Telegram bot token": r"\d{8,10}:AA[A-Za-z0-9_-]{33}",
    "Stripe key": r"(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{20,}",
    "Stripe webhook secret": r"whsec_[A-Za-z0-9]{32,}",
    "Square token": r"(?:sq0(?:atp|csp)-[A-Za-z0-9_-]{22,}|EAAA[A-Za-z0-9_-]{60})",
    "Shopify token": r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}",
    "Twilio key": r"SK[0-9a-f]{32}",
    "SendGrid key": r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}",
    "Mailgun key": r"key-[0-9a-f]{32}",
    "Mailchimp key": r"[0-9a-f]{32}-us\d{1,2}",
    "DigitalOcean token": r"do[opr]_v1_[0-9a-f]{64}",
    "Databricks token": r"dapi[0-9a-f]{32}(?:-\d)?",
    "Azure storage key": r"AccountKey=[A-Za-z0-9+/]{86}==",
    "Azure client secret": r"[A-Za-z0-9_~.]{3}\dQ~[A-Za-z0-9_~.-]{31,34}",
    "HashiCorp Vault token": r"hv[sbr]\.[A-Za-z0-9_-]{24,}",
    "Terraform Cloud token": r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_-]{60,}",
    "Pulumi token": r"pul-[0-9a-f]{40}",
    "Doppler token": r"dp\.(?:pt|st|ct|sa|scim|audit)\.[A-Za-z0-9_.-]{40,}",
    "Grafana token": r"gl(?:sa_[A-Za-z0-9]{32}_[0-9a-f]{8}|c_[A-Za-z0-9+/=]{32,})",
    "Sentry token": r"sntry[su]_[A-Za-z0-9+/=_]{40,}",
    "New Relic key": r"NRAK-[A-Z0-9]{27}",
    "Postman key": r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}",
    "Linear key": r"lin_api_[A-Za-z0-9]{40}",
    "Notion token": r"(?:ntn_[A-Za-z0-9]{40,}|secret_[A-Za-z0-9]{43})",
    "Airtable token": r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}",
    "Figma token": r"fig[dou]_[A-Za-z0-9_-]{40,}",
    "Supabase token": r"sb(?:p_[0-9a-f]{40}|_secret_[A-Za-z0-9_-]{30,})",
    "PlanetScale token": r"pscale_(?:tkn|pw|oauth)_[A-Za-z0-9_.=-]{32,}",
    "Fly.io token": r"(?:FlyV1 )?fm[12][ar]?_[A-Za-z0-9+/=]{60,}",
    "Heroku key": r"HRKU-[A-Za-z0-9_-]{36,}",
    "Dropbox token": r"sl\.(?:u\.)?[A-Za-z0-9_-]{100,}",
    "Facebook token": r"EAA[A-Z][A-Za-z0-9]{80,}",
    "age secret key": r"AGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}",
    "JSON web token": r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}",
}
"""Kinds whose own form tells them, by the issuers' published prefixes."""
CONTEXT: dict[str, str] = {
    "private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "AWS secret key": r"(?i)aws[\w.-]*secret[\w.-]*[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
    "Azure shared access signature": r"[?&]sig=[A-Za-z0-9%+/]{40,}",
    "password in an address": r"[a-z][a-z0-9+.-]*://[^\s/:@\"'<>]+:[^\s/@\"'<>]{3,}@[\w.-]+",
    "bearer token": r"(?i)authorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)\s+[A-Za-z0-9._~+/-]{16,}",
    "login in netrc": r"machine\s+\S+\s+login\s+\S+\s+password\s+\S+",
    "Kaggle key": r"\"username\"\s*:\s*\"[^\"]+\"\s*,\s*\"key\"\s*:\s*\"[0-9a-f]{32}\"",
    "key of a tracker": r"(?i)(?:wandb|comet|neptune|mlflow|clearml|cohere|mistral|datadog|dd)[\w.-]*(?:key|token)"
    r"[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9_=-]{20,}",
    "password or key in a setting": r"(?i)(?:api[_-]?key|secret(?:[_-]?key)?|passw(?:or)?d|passphrase|"
    r"(?:access|auth|refresh|bearer)[_-]?token)[\"']?\s*[:=]\s*[\"'](?!<)[^\s\"'{}$<>]{10,}[\"']",
}
"""Kinds that only the words around them tell."""
_SECRETS = {k: re.compile(_WORD + f"(?:{p})" + _ENDS) for k, p in SECRETS.items()}
_CONTEXT = {k: re.compile(p) for k, p in CONTEXT.items()}
_LONG_WORD = re.compile(r"[^\s\"]{20,}")
"""No secret that its form tells is shorter, or has spaces or quotes in it; of a vocabulary little else is that long."""

_FACTS: dict[str, re.Pattern[str]] = {
    "absolute path": re.compile(
        r"(?<![\w.:/\\-])(?:file://)?/(?:home|Users|root|mnt|media|data|var|tmp|opt|srv|scratch|work|workspace|private|"
        r"content|kaggle|gpfs|lustre|nfs|dbfs|Volumes|usr|etc)/[\w.@-]+|(?<![\w])[A-Za-z]:\\\\?(?:Users|home|data)\\\\?\w+"
        r"|(?<![\w/])/root\b"
    ),
    "private address": re.compile(
        r"(?<![\d.])(?:10\.\d{1,3}|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}(?![\d.])"
    ),
}
_EMAIL = re.compile(r"(?<![\w.+/-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b")
GENERIC = {
    "root", "user", "users", "admin", "ubuntu", "debian", "runner", "jovyan", "vscode", "docker",
    "nobody", "home", "main", "test", "app", "data", "work",
    "localhost", "localdomain", "local", "host", "server", "node",
    "master", "default", "model", "models", "build", "python", "container",
}  # fmt: skip
"""Names of users and hosts that tell nothing."""
VOCABULARY = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "special_tokens_map.json"}
"""Files whose content is words of the language: any path or name may be one of them."""
PUBLIC_PEOPLE = {"README.md", "LICENSE", "LICENSE.txt", "NOTICE", "CITATION.cff"}
"""Files in which addresses of people are meant to be read."""


LONGEST_HEADER = 100_000_000
"""Bytes; the limit that safetensors itself sets."""


class Finding(Frozen):
    """Something that must not go out."""

    file: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.kind}: {self.shown}"

    @property
    def shown(self) -> str:
        """Enough of the text to find it; of a secret only the beginning."""
        facts = {*_FACTS, "e-mail address", "name of the user", "name of the host"}
        return self.text[:80] if self.kind in facts else f"{self.text[:6]}... ({len(self.text)} characters)"


def scan(files: Mapping[str, Path | bytes], allow: Iterable[str] = ()) -> list[Finding]:
    """Look for secrets and private facts in `files`, the path in the repository to the content.

    Secrets are looked for in everything; of safetensors only the header is read. Private facts (absolute paths, e-mail
    addresses, names of this user and host, private network addresses) are looked for where a program or a person wrote
    text: not in vocabularies, and addresses of people not in README and LICENSE.

    Args:
        files: what would go out.
        allow: texts that are no finding.
    """
    names, known = _names_here(), _known_secrets()
    allowed = set(allow)
    found = [f for name, content in files.items() for f in _findings(name, _text(name, content), names, known)]
    return [f for f in found if f.text not in allowed]


def _findings(
    name: str, text: str, names: Mapping[str, re.Pattern[str]], known: Mapping[str, re.Pattern[str]]
) -> Iterator[Finding]:
    place = PurePosixPath(name)
    words = place.name in VOCABULARY or place.suffix in (".model", ".spm", ".tiktoken")
    facts = {} if words or place.suffix in (".png", ".jpg") else {**_FACTS, **names}
    if facts and place.name not in PUBLIC_PEOPLE:
        facts["e-mail address"] = _EMAIL
    long_words = "\n".join(_LONG_WORD.findall(text))
    secrets = {kind: pattern for kind, pattern in _SECRETS.items() if pattern.search(long_words)}
    kinds = {**known, **({} if words else _CONTEXT), **secrets}
    taken: list[tuple[int, int]] = []

    def found(kind: str, match: re.Match[str]) -> Finding:
        return Finding(file=name, line=text.count("\n", 0, match.start()) + 1, kind=kind, text=match[0])

    for kind, pattern in kinds.items():
        for match in pattern.finditer(text):
            taken.append(match.span())
            yield found(kind, match)
    for kind, pattern in facts.items():
        for match in pattern.finditer(text):
            if not any(start < match.end() and match.start() < end for start, end in taken):
                yield found(kind, match)


def _text(name: str, content: Path | bytes) -> str:
    if name.endswith(".safetensors"):
        return _header(name, content)
    raw = content if isinstance(content, bytes) else content.read_bytes()
    return raw.decode("utf-8", "replace")


def _header(name: str, content: Path | bytes) -> str:
    """The metadata of a safetensors file; its tensors cannot hold a text that anyone put there by mistake."""
    try:
        if isinstance(content, bytes):
            size, rest = int.from_bytes(content[:8], "little"), content[8:]
            raw = rest[:size]
        else:
            with content.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                raw = file.read(min(size, LONGEST_HEADER))
        return json.dumps(json.loads(raw).get("__metadata__", {}), ensure_ascii=False)
    except ValueError as error:
        raise UsageError(f"{name} is no safetensors file: its header cannot be read.") from error


def _known_secrets() -> dict[str, re.Pattern[str]]:
    """Secrets of this very machine: the Hub token in use, and what the environment names as one."""
    named = re.compile(r"(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIALS?)$")
    values = {v for k, v in os.environ.items() if named.search(k.upper()) and len(v) >= 12} | {get_token() or ""}
    texts = sorted(re.escape(v) for v in values if len(v) >= 12)
    return {"secret of this machine's environment": re.compile("|".join(texts))} if texts else {}


def _names_here() -> dict[str, re.Pattern[str]]:
    """Patterns for who and where this is, unless the name tells nothing."""
    try:
        users = {getpass.getuser(), Path.home().name}
    except (OSError, KeyError, RuntimeError):
        users = set()
    hosts = {socket.gethostname(), socket.gethostname().partition(".")[0]}
    found = {}
    for kind, names in (("name of the user", users), ("name of the host", hosts)):
        telling = sorted(re.escape(n) for n in names if len(n) > 3 and n.lower() not in GENERIC)
        if telling:
            found[kind] = re.compile(rf"(?<![\w-])(?:{'|'.join(telling)})(?![\w-])")
    return found
