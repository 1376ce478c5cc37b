"""The zero-shot classifier as a Ray Serve application: `serve run serving.app:build model=runs/demo/final`."""
