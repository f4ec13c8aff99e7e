"""The harness: measures, predicts and reports. `python -m bench --help`."""
