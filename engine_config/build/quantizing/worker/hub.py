"""A model from the Hugging Face hub, at one pinned commit."""

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .events import Refused

# Code of the repository is neither fetched nor run.
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*"]


def snapshot(repo: str, revision: str) -> str:
    """Fetch it into the hub's own cache and return the folder.

    Raises:
        Refused: no network, no such repository or revision, or it wants a login.
    """
    try:
        return str(snapshot_download(repo, revision=revision, allow_patterns=WANTED))
    except GatedRepoError as error:
        raise Refused(f"{repo} is gated: accept its terms and set HF_TOKEN.") from error
    except RevisionNotFoundError as error:
        raise Refused(f"{repo} has no revision {revision}.") from error
    except RepositoryNotFoundError as error:
        raise Refused(f"the hub has no {repo}, or it is private and wants HF_TOKEN.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise Refused(
            f"the Hugging Face hub cannot be reached for {repo}. Check network, proxy and "
            "HF_HUB_OFFLINE, or give the folder of a model you have."
        ) from error
