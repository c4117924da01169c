"""Made-up secrets of every kind, built from their issuers' published forms; nothing here was ever a real one."""

import base64
import json
import random
import string

import safetensors.torch as safetensors_torch
import torch

_DRAW = random.Random(0)
HEX, LOWER, UPPER, ALNUM = (
    "0123456789abcdef",
    string.ascii_lowercase,
    string.ascii_uppercase,
    string.ascii_letters + string.digits,
)
URL = ALNUM + "-_"


def r(length, alphabet=ALNUM):
    """Random text that begins and ends with a letter or digit."""
    safe = [c for c in alphabet if c.isalnum()]
    return "".join([_DRAW.choice(safe), *_DRAW.choices(alphabet, k=length - 2), _DRAW.choice(safe)])


def jwt():
    parts = [{"alg": "HS256", "typ": "JWT"}, {"sub": "1234567890", "name": "Nobody"}]
    return (
        ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts)
        + "."
        + r(43, URL)
    )


PLANTED = {
    "Hugging Face token": "hf_" + r(34),
    "Hugging Face organization token": "api_org_" + r(34),
    "OpenAI key": "sk-proj-" + r(58, URL) + "T3BlbkFJ" + r(58, URL),
    "Anthropic key": "sk-ant-api03-" + r(93, URL) + "AA",
    "OpenRouter key": "sk-or-v1-" + r(64, HEX),
    "Groq key": "gsk_" + r(52),
    "xAI key": "xai-" + r(80),
    "Perplexity key": "pplx-" + r(48),
    "Replicate token": "r8_" + r(37),
    "RunPod key": "rpa_" + r(40, UPPER) + r(6),
    "Weights & Biases key": "wandb_v1_" + r(77),
    "Pinecone key": "pcsk_" + r(6) + "_" + r(63),
    "AWS access key id": "AKIA" + r(16, UPPER + "234567"),
    "AWS secret key": "aws_secret_access_key = " + r(40),
    "Google API key": "AIza" + r(35, URL),
    "Google OAuth client secret": "GOCSPX-" + r(28, URL),
    "Google OAuth access token": "ya29." + r(120, URL),
    "GitHub personal token": "ghp_" + r(36),
    "GitHub fine-grained token": "github_pat_" + r(22) + "_" + r(59),
    "GitHub app or OAuth token": "gho_" + r(36),
    "GitLab token": "glpat-" + r(20, URL),
    "Bitbucket app password": "ATBB" + r(32),
    "Atlassian token": "ATATT3" + r(180, URL) + "=1A2B3C4D",
    "npm token": "npm_" + r(36),
    "PyPI token": "pypi-AgEIcHlwaS5vcmc" + r(150, URL),
    "RubyGems key": "rubygems_" + r(48, HEX),
    "Docker Hub token": "dckr_pat_" + r(27, URL),
    "Slack token": "xoxb-" + r(12, string.digits) + "-" + r(12, string.digits) + "-" + r(24),
    "Slack webhook": f"https://hooks.slack.com/services/T{r(8, UPPER)}/B{r(8, UPPER)}/{r(24)}",
    "Discord webhook": f"https://discord.com/api/webhooks/{r(18, string.digits)}/{r(68, URL)}",
    "Discord bot token": "M" + r(23) + "." + r(6) + "." + r(38, URL),
    "Telegram bot token": r(10, "123456789") + ":AA" + r(33, URL),
    "Stripe key": "sk_" + "live_" + r(24),
    "Stripe webhook secret": "whsec_" + r(32),
    "Square token": "sq0atp-" + r(22, URL),
    "Shopify token": "shpat_" + r(32, HEX),
    "Twilio key": "SK" + r(32, HEX),
    "SendGrid key": "SG." + r(22, URL) + "." + r(43, URL),
    "Mailgun key": "key-" + r(32, HEX),
    "Mailchimp key": r(32, HEX) + "-us12",
    "DigitalOcean token": "dop_v1_" + r(64, HEX),
    "Databricks token": "dapi" + r(32, HEX) + "-2",
    "Azure storage key": f"DefaultEndpointsProtocol=https;AccountName=x;AccountKey={r(86)}==;EndpointSuffix=core",
    "Azure shared access signature": f"https://x.blob.core.windows.net/c?sv=2022-11-02&sig={r(43)}%3D",
    "Azure client secret": r(3) + "8Q~" + r(34, URL + "~."),
    "HashiCorp Vault token": "hvs." + r(95, URL),
    "Terraform Cloud token": r(14) + ".atlasv1." + r(67, URL),
    "Pulumi token": "pul-" + r(40, HEX),
    "Doppler token": "dp.pt." + r(43),
    "Grafana token": "glsa_" + r(32) + "_" + r(8, HEX),
    "Sentry token": "sntrys_" + r(90),
    "New Relic key": "NRAK-" + r(27, UPPER + string.digits),
    "Postman key": "PMAK-" + r(24, HEX) + "-" + r(34, HEX),
    "Linear key": "lin_api_" + r(40),
    "Notion token": "ntn_" + r(46),
    "Airtable token": "pat" + r(14) + "." + r(64, HEX),
    "Figma token": "figd_" + r(43, URL),
    "Supabase token": "sbp_" + r(40, HEX),
    "PlanetScale token": "pscale_tkn_" + r(43, URL),
    "Fly.io token": "FlyV1 fm2_" + r(200),
    "Heroku key": "HRKU-" + r(60, URL),
    "Dropbox token": "sl." + r(140, URL),
    "Facebook token": "EAAB" + r(160),
    "age secret key": "AGE-SECRET-KEY-1" + r(58, "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L"),
    "JSON web token": jwt(),
    "private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "password in an address": f"postgresql://admin:{r(12)}@db.example.org:5432/x",
    "bearer token": "Authorization: Bearer " + r(40),
    "login in netrc": f"machine example.org login me password {r(12)}",
    "Kaggle key": '{"username": "someone", "key": "' + r(32, HEX) + '"}',
    "key of a tracker": "WANDB_API_KEY=" + r(40, HEX),
    "password or key in a setting": f'"db_password": "{r(14)}"',
    "token in a setting": "DEPLOY_TOKEN=" + r(24) + "7",
    "key in an address": "https://api.example.org/v1?user=3&api_key=" + r(24) + "7",
}
"""One secret of each kind that the scan knows, by kind."""

FACTS = {
    "absolute path": "/home/anna/models",
    "path of a drive": "C:\\Users\\anna",
    "home path": "~/acme-secrets/run",
    "network path": "\\\\fileserver\\models",
    "address of a shared folder": "smb://fileserver/models",
    "private address": "192.168.1.20",
    "e-mail address": "anna.b@example.org",
}
"""One private fact of each kind, by kind."""

WRAPPED = {
    "log.txt": "2026-01-01 12:00:00 INFO using {} for the upload",
    "config.json": '{{"note": "{}"}}',
    "README.md": "Run it with `{}`.",
    "run.sh": "export X={}",
}
"""Where people leave them."""
WHOLE = ("Kaggle key", "password or key in a setting", "login in netrc", "token in a setting", "key in an address")
"""Kinds that bring what is around them."""


def escaped(text):
    """As JSON may write it: letters as numbers, and slashes with a backslash."""
    return (
        json.dumps(text)[1:-1]
        .replace("/", "\\/")
        .replace("_", "\\u005f")
        .replace("k", "\\u006b")
        .replace("A", "\\u0041")
    )


def safetensors(name="x", metadata=None):
    """A file with one tensor."""
    return safetensors_torch.save({name: torch.ones(2)}, metadata)


def onnx_like(text):
    """Bytes as of a protobuf: a text among numbers."""
    noise = random.Random(1).randbytes
    return b"\x08\x07\x12\x00" + noise(5000) + b"\0\x0a\x2a" + text.encode() + b"\0" + noise(5000)


PLACES = {
    "a text": lambda s: ("log.txt", f"using {s} for the upload".encode()),
    "a word": lambda s: ("log.txt", f"see my_{s} there".encode()),
    "a line of a script": lambda s: ("run.sh", f"export X={s}\n".encode()),
    "escaped JSON": lambda s: ("config.json", f'{{"note": "a\\n{escaped(s)}"}}'.encode()),
    "Base64": lambda s: ("secret.yaml", b"value: " + base64.b64encode(s.encode())),
    "UTF-16": lambda s: ("notes.txt", f"notes: {s} and more of them".encode("utf-16")),
    "the metadata of safetensors": lambda s: ("model.safetensors", safetensors(metadata={"made_by": s})),
    "the name of a tensor": lambda s: ("model.safetensors", safetensors(f"layer.{s}" if "/" not in s else s)),
    "the bytes of ONNX or GGUF": lambda s: ("model.onnx", onnx_like(s)),
    "a vocabulary": lambda s: ("tokenizer.json", f'{{"a": 1, "{s}": 2}}'.encode()),
}
"""Where a secret lies, to a file with it: its name and content."""

ADVERSARIAL = [
    "hf_", "sk-", "eyJhbGciO", "eyJ", "aws-secret-", "authorization" + " " * 10, "://:", "machine x login y ", "SG.", "sl.",
    "a@", "a.", "@a", "password=", "password" + " " * 7, '"username": "', "\\\\a", "\\u0041", "/home/", "10.", "~a/", "glpat-", "MMMM.",
    "-----BEGIN A ", "dd_", "a", "a-", "1", "pat", "0123456789abcdef", "\n", "=", "xoxb-", "file://", "sk-proj-a", "wandb", "A_",
]  # fmt: skip
"""Of each of these a pattern without bounds would try every length at every place."""
