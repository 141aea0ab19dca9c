"""What quantising needs beside the code: the worker that runs in the tools' own environment, the texts."""
