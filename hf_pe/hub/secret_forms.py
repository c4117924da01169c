"""Define patterns of secrets, by the prefixes that their issuers publish and by the words around them.

Each kind has literals, one of which is in every secret of that kind, and a pattern. A text without any of the literals
is not searched by the pattern. Every repetition in a pattern is bounded, so that its time grows only with the length of
the text. Most prefixes are long enough to be recognized inside a word (`my_hf_...`); patterns of those that a hash or a
word of the language could contain by chance ask for a boundary.

The prefixes are those that the issuers document and that the secret scanning of GitHub lists:
https://docs.github.com/code-security/secret-scanning/introduction/supported-secret-scanning-patterns
"""

import re
from typing import NamedTuple


class Form(NamedTuple):
    """Define how a kind of secret is recognized.

    Attributes:
        literals: Texts of which one is in each secret, separated by spaces.
        pattern: Regular expression on bytes; its group `value`, where it has one, is the secret itself.
    """

    literals: str
    pattern: str


SECRETS: dict[str, Form] = {
    "Hugging Face token": Form("hf_", r"hf_[A-Za-z0-9]{30,200}"),
    "Hugging Face organization token": Form("api_org_", r"api_org_[A-Za-z0-9]{30,200}"),
    "OpenAI key": Form("T3BlbkFJ", r"sk-(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]{20,100}T3BlbkFJ[A-Za-z0-9_-]{20,100}"),
    "Anthropic key": Form("sk-ant-", r"sk-ant-[a-z0-9]{1,12}-[A-Za-z0-9_-]{32,200}"),
    "OpenRouter key": Form("sk-or-v1-", r"sk-or-v1-[0-9a-f]{64}"),
    "Groq key": Form("gsk_", r"gsk_[A-Za-z0-9]{48,200}"),
    "xAI key": Form("xai-", r"xai-[A-Za-z0-9]{60,200}"),
    "Perplexity key": Form("pplx-", r"pplx-[A-Za-z0-9]{40,200}"),
    "Replicate token": Form("r8_", r"r8_[A-Za-z0-9]{37,200}"),
    "RunPod key": Form("rpa_", r"rpa_[A-Z0-9]{30,200}[A-Za-z0-9]{0,20}"),
    "Weights & Biases key": Form("wandb_v1_", r"wandb_v1_[A-Za-z0-9_]{40,200}"),
    "Pinecone key": Form("pcsk_", r"pcsk_[A-Za-z0-9_]{40,200}"),
    "AWS access key id": Form("AKIA ASIA ABIA ACCA", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?![A-Za-z0-9])"),
    "Google API key": Form("AIza", r"AIza[A-Za-z0-9_-]{35}"),
    "Google OAuth client secret": Form("GOCSPX-", r"GOCSPX-[A-Za-z0-9_-]{28}"),
    "Google OAuth access token": Form("ya29.", r"ya29\.[A-Za-z0-9_-]{30,300}"),
    "GitHub personal token": Form("ghp_", r"ghp_[A-Za-z0-9]{36}"),
    "GitHub fine-grained token": Form("github_pat_", r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    "GitHub app or OAuth token": Form("gho_ ghu_ ghs_ ghr_", r"gh[ousr]_[A-Za-z0-9]{36,200}"),
    "GitLab token": Form(
        "glpat- gldt- glrt- glptt- glft- glimt- glagent- glsoat-",
        r"gl(?:pat|dt|rt|ptt|ft|imt|agent|soat)-[A-Za-z0-9_-]{20,200}",
    ),
    "Bitbucket app password": Form("ATBB", r"ATBB[A-Za-z0-9]{32}"),
    "Atlassian token": Form("ATATT3", r"ATATT3[A-Za-z0-9_=-]{50,300}"),
    "npm token": Form("npm_", r"npm_[A-Za-z0-9]{36}"),
    "PyPI token": Form("pypi-AgEI", r"pypi-AgEI[A-Za-z0-9_-]{50,300}"),
    "RubyGems key": Form("rubygems_", r"rubygems_[0-9a-f]{48}"),
    "Docker Hub token": Form("dckr_pat_ dckr_oat_", r"dckr_(?:pat|oat)_[A-Za-z0-9_-]{27,200}"),
    "Slack token": Form(
        "xoxa- xoxb- xoxe- xoxo- xoxp- xoxr- xoxs-", r"xox[abeoprs]-(?=[A-Za-z-]{0,12}\d)[A-Za-z0-9-]{20,200}"
    ),
    "Slack webhook": Form(
        "hooks.slack.com",
        r"hooks\.slack\.com/services/T[A-Za-z0-9]{1,40}/B[A-Za-z0-9]{1,40}/[A-Za-z0-9]{1,80}",
    ),
    "Discord webhook": Form("/api/webhooks/", r"discord(?:app)?\.com/api/webhooks/\d{1,30}/[A-Za-z0-9_-]{60,200}"),
    "Discord bot token": Form(
        ".", r"[MNO](?<![A-Za-z0-9][MNO])[A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,100}"
    ),
    "Telegram bot token": Form(":AA", r"(?<!\d)\d{8,10}:AA[A-Za-z0-9_-]{33}"),
    "Stripe key": Form("sk_live_ sk_test_ rk_live_ rk_test_", r"[sr]k_(?:live|test)_[A-Za-z0-9]{20,200}"),
    "Stripe webhook secret": Form("whsec_", r"whsec_[A-Za-z0-9]{32,200}"),
    "Square token": Form(
        "sq0atp- sq0csp- EAAA",
        r"(?:sq0(?:atp|csp)-[A-Za-z0-9_-]{22,200}|(?<![A-Za-z0-9+/_-])EAAA[A-Za-z0-9_-]{60}(?![A-Za-z0-9+/_-]))",
    ),
    "Shopify token": Form("shpat_ shpca_ shppa_ shpss_", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    "Twilio key": Form("SK", r"SK(?<![A-Za-z0-9]SK)[0-9a-f]{32}(?![0-9A-Za-z])"),
    "SendGrid key": Form("SG.", r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),
    "Mailgun key": Form("key-", r"key-(?<![A-Za-z0-9]key-)[0-9a-f]{32}(?![0-9a-zA-Z])"),
    "Mailchimp key": Form("-us", r"(?<![0-9a-zA-Z])[0-9a-f]{32}-us\d{1,2}(?![0-9A-Za-z])"),
    "DigitalOcean token": Form("dop_v1_ doo_v1_ dor_v1_", r"do[opr]_v1_[0-9a-f]{64}"),
    "Databricks token": Form("dapi", r"dapi[0-9a-f]{32}(?:-\d)?(?![0-9a-zA-Z])"),
    "Azure storage key": Form("AccountKey=", r"AccountKey=[A-Za-z0-9+/]{86}=="),
    "Azure client secret": Form("Q~", r"[A-Za-z0-9_~.]{3}\dQ~[A-Za-z0-9_~.-]{31,34}"),
    "HashiCorp Vault token": Form("hvs. hvb. hvr.", r"hv[sbr]\.[A-Za-z0-9_-]{24,300}"),
    "Terraform Cloud token": Form(".atlasv1.", r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_-]{60,200}"),
    "Pulumi token": Form("pul-", r"pul-[0-9a-f]{40}(?![0-9a-zA-Z])"),
    "Doppler token": Form(
        "dp.pt. dp.st. dp.ct. dp.sa. dp.scim. dp.audit.",
        r"dp\.(?:pt|st|ct|sa|scim|audit)\.[A-Za-z0-9_.-]{40,200}",
    ),
    "Grafana token": Form("glsa_ glc_", r"(?:glsa_[A-Za-z0-9]{32}_[0-9a-f]{8}|glc_[A-Za-z0-9+/=]{32,400})"),
    "Sentry token": Form("sntrys_ sntryu_", r"sntry[su]_[A-Za-z0-9+/=_]{40,400}"),
    "New Relic key": Form("NRAK-", r"NRAK-[A-Z0-9]{27}"),
    "Postman key": Form("PMAK-", r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}"),
    "Linear key": Form("lin_api_", r"lin_api_[A-Za-z0-9]{40}"),
    "Notion token": Form("ntn_ secret_", r"(?:ntn_[A-Za-z0-9]{40,200}|secret_[A-Za-z0-9]{43}(?![A-Za-z0-9]))"),
    "Airtable token": Form("pat", r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}"),
    "Figma token": Form("figd_ figo_ figu_", r"fig[dou]_[A-Za-z0-9_-]{40,200}"),
    "Supabase token": Form("sbp_ sb_secret_", r"sb(?:p_[0-9a-f]{40}|_secret_[A-Za-z0-9_-]{30,200})"),
    "PlanetScale token": Form("pscale_", r"pscale_(?:tkn|pw|oauth)_[A-Za-z0-9_.=-]{32,200}"),
    "Fly.io token": Form("fm1 fm2", r"fm[12][ar]?_[A-Za-z0-9+/=]{60,400}"),
    "Heroku key": Form("HRKU-", r"HRKU-[A-Za-z0-9_-]{36,200}"),
    "Dropbox token": Form("sl.", r"sl\.(?<![A-Za-z0-9]sl\.)(?:u\.)?[A-Za-z0-9_-]{100,400}"),
    "Facebook token": Form("EAA", r"EAA(?<![A-Za-z0-9+/]EAA)[A-Z][A-Za-z0-9]{80,400}(?![+/=])"),
    "age secret key": Form("AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}"),
    "JSON web token": Form(
        "eyJ",
        r"(?:eyJ(?<![A-Za-z0-9_-]eyJ)|eyJ(?=hbGci|0eXAi|raWQi|lbmMi))[A-Za-z0-9_-]{10,300}"
        r"\.eyJ[A-Za-z0-9_-]{10,2000}\.[A-Za-z0-9_-]{20,1000}",
    ),
}
"""Kinds that are recognized by their own form; case counts."""

_KEY = (
    r"(?:a(?:pi[_-]?key|(?:ccess|uth)[_-]?(?:token|key))|client[_-]?secret|secret(?:[_-]?(?:access[_-]?)?key)?|"
    r"p(?:assw(?:or)?d|assphrase|rivate[_-]?key)|(?<=[_;&? ])pwd|"
    r"(?:refresh|bearer|session|hub|github|gitlab|slack|bot)[_-]?(?:token|key))(?:_?\d{1,2})?"
)
_BARE = r"[^\s\"'`,;&(){}\[\]<>$|\\]"
"""Matches one byte of a value without quotes around it."""
CONTEXT: dict[str, Form] = {
    "private key": Form("-----begin", r"-----begin (?:[a-z0-9]{1,20} ){0,4}private key(?: block)?-----"),
    "AWS secret key": Form(
        "aws",
        r"aws[\w.-]{0,30}secret[\w.-]{0,30}[\"']?\s{0,8}[:=]\s{0,8}[\"']?[a-z0-9/+]{40}(?![a-z0-9/+])",
    ),
    "Azure shared access signature": Form("sig=", r"[?&]sig=[a-z0-9%+/]{40,200}"),
    "password in an address": Form(
        "://", r"://[^\s/:@\"'<>{}$%*\\]{0,100}:(?P<value>[^\s/@\"'<>{}$*\\]{3,200})@[\w.-]{1,253}"
    ),
    "bearer token": Form(
        "authorization",
        r"authorization[\"']?\s{0,8}[:=]\s{0,8}[\"']?(?:bearer|basic|token)\s{1,8}(?P<value>[a-z0-9._~+/-]{16,2000})",
    ),
    "login in netrc": Form(
        "machine", r"machine\s{1,8}\S{1,255}\s{1,8}login\s{1,8}\S{1,255}\s{1,8}password\s{1,8}(?P<value>\S{3,255})"
    ),
    "Kaggle key": Form(
        '"username"', r'"username"\s{0,8}:\s{0,8}"[^"]{1,100}"\s{0,8},\s{0,8}"key"\s{0,8}:\s{0,8}"[0-9a-f]{32}"'
    ),
    "key of a tracker": Form(
        "wandb comet neptune mlflow clearml cohere mistral datadog dd_",
        r"(?:wandb|comet|neptune|mlflow|clearml|cohere|mistral|datadog|dd_(?<![a-z]dd_))[\w.-]{0,40}(?:key|token)"
        r"[\"']?\s{0,8}[:=]\s{0,8}[\"']?(?=[a-z_=-]{0,60}\d)[a-z0-9_=-]{20,200}",
    ),
    "password or key in a setting": Form(
        "key secret passw pwd passphrase token",
        rf"{_KEY}(?:[\"']?\s{{0,8}}(?:=>|:?=|:)\s{{0,8}}[\"'](?P<quoted>[^\s\"'{{}}$<>]{{6,200}})[\"']"
        rf"|=(?P<inline>{_BARE}{{5,200}})"
        rf"|[ \t]{{0,8}}(?::?=|:)[ \t]{{0,8}}(?P<line>{_BARE}{{5,200}})"
        r"(?=[ \t]{0,20}(?:#[^\n]{0,200})?\r?(?:\n|$)))",
    ),
    "token in a setting": Form("_token", r"_token=[\"']?(?=[a-z_-]{0,60}\d)(?P<value>[a-z0-9_.~+/-]{12,400})"),
    "key in an address": Form(
        "token= key= signature= auth=",
        r"[?&](?:(?:access_?)?token|(?:api_?)?key|(?:x-amz-)?signature|auth)=(?=[^&\s]{0,60}\d)(?P<value>[a-z0-9%._~+/-]{16,400})",
    ),
}
"""Kinds that are recognized only by the words around them; they are searched in the text in lower case."""

PLACEHOLDERS = {
    "your", "my", "the", "a", "an", "insert", "enter", "put", "here", "some", "example", "sample", "dummy", "fake",
    "test", "foo", "bar", "baz", "abc", "def", "xyz", "x", "xx", "xxx", "xxxx", "changeme", "change", "me",
    "placeholder", "redacted", "removed", "hidden", "none", "null", "nil", "true", "false", "undefined", "empty",
    "string", "str", "bytes", "int", "bool", "optional", "required", "any", "env", "os", "environ", "getenv",
    "process", "config", "settings", "self", "args", "kwargs", "options", "secret", "secrets", "token", "tokens",
    "password", "passwd", "passphrase", "pass", "pwd", "api", "key", "keys", "apikey", "access", "auth", "client",
    "private", "public", "credentials", "credential", "user", "username", "admin", "value", "no", "not", "sk", "hf",
    "openai", "anthropic", "db", "database", "default", "get", "load", "read", "input", "prompt", "id", "name",
    "of", "is", "with",
}  # fmt: skip
"""Words of which placeholders in examples and programs are made."""


def is_secret_value(match: re.Match[bytes]) -> bool:
    """Return whether the value of a setting can be a secret, rather than a placeholder or a name in a program."""
    group = next((name for name, value in match.groupdict().items() if value is not None), None)
    if group is None:
        return True
    value = match[group]
    words = re.findall("[a-z]+", value.decode("latin-1").lower())
    if len(set(value)) < 3 or value.startswith((b"/", b"http:", b"https:", b"file:")):
        return False
    if not any(48 <= byte < 58 for byte in value) and PLACEHOLDERS.issuperset(words):
        return False
    return group == "value" or re.fullmatch(rb"[A-Za-z_.]+", value) is None or _is_sure(match, group)


def _is_sure(match: re.Match[bytes], group: str) -> bool:
    """Return whether a value of letters only is a secret: long and in quotes, or the rest of a line NAME=value."""
    if b"." in match[group]:
        return False  # it is an attribute in a program
    if group == "quoted":
        return len(match[group]) >= 10
    before = match.string[max(match.start() - 90, 0) : match.start()]
    after = match.string[match.end() : match.end() + 1]
    line = before.rpartition(b"\n")[2]
    begins = len(line) < 90 and re.fullmatch(rb"\s*(?:export |set |env )?\w{0,60}", line) is not None
    return begins and after in (b"", b"\n", b"\r") and re.search(rb"\s", match[0]) is None
