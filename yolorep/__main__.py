"""`python -m yolorep`, the `yolorep` command; what torch.distributed.run starts again in each process."""

from yolorep.cli import main

main()
