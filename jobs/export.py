"""Write a model for another library: transformers' CLIPModel, or open_clip.

python jobs/export.py runs/demo/final exported --layout open_clip
python jobs/export.py hf://openai/clip-vit-base-patch32 s3://bucket/clip --layout hugging_face
"""

from __future__ import annotations

import argparse
import sys
from typing import get_args

from orchestrator.errors import UserError
from orchestrator.inference import export_model
from orchestrator.inference.export import Target


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a model directory, or a model published by others: a folder or hf://owner/name")
    parser.add_argument("destination", help="a folder that is not there yet")
    parser.add_argument("--layout", choices=get_args(Target), required=True)
    arguments = parser.parse_args(argv)
    export_model(arguments.source, arguments.destination, arguments.layout)
    print(f"exported  {arguments.destination} ({arguments.layout})")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
