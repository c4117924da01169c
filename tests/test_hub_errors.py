import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.source import resolve
from hf_pe.errors import UsageError
from hf_pe.hub_errors import hub_reason


def test_a_reason_is_said_once():
    with pytest.raises(UsageError) as refused:
        load_config(resolve("someone/no-such-model"))
    message = str(refused.value)
    assert message.count("someone/no-such-model") == 1 and message.count("no local folder") == 1
    assert "it is not among the files downloaded before" in message and len(message) < 300


def test_the_first_known_reason_behind_an_error_is_taken():
    second = LocalEntryNotFoundError("cannot find")
    second.__cause__ = OfflineModeIsEnabled("offline mode is enabled.")
    assert "HF_HUB_OFFLINE" in hub_reason(second)
    assert hub_reason(ValueError("a  b.\nc")) == "a b. c"
    assert issubclass(HfHubHTTPError, OSError)
