"""`python -m limbeck`, also under torchrun: `torchrun --nproc-per-node 2 -m limbeck run RECIPE`."""

from limbeck.cli.app import main

if __name__ == "__main__":
    main()
