"""streamkd: a continual learner that lives on a data stream.

A small student learns from live labelled records and answers predictions while it
learns; a pool of teachers, listened to through a learned gate, keeps it from forgetting.
Nothing is imported here: ``streamkd --help`` must answer before torch could be loaded.
"""

__version__ = "0.1.0"
