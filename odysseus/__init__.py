"""The shared skeleton of the suite: one model, its collectives, ZeRO-3, data and step."""
