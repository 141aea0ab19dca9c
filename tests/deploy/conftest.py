"""Without the tools nothing here is collected: `make test` needs none of them."""

import os

collect_ignore_glob = []
if "DEPLOY_TOOLS" not in os.environ:
    collect_ignore_glob.append("lint/*")
if "DEPLOY_FOLDER" not in os.environ:
    collect_ignore_glob.append("image/*")
