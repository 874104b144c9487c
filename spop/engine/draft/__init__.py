"""Drafts of the two files of HAProxy that fit an agent's handlers: `draft`.

`guesses` finds a fetch for a parameter, `rules` a rule for a variable, `files` writes both into
text. Nothing here reads or writes a file.
"""

from spop.engine.draft.files import DEFAULT_PATH, Draft, DraftError, Plan, draft

__all__ = ["DEFAULT_PATH", "Draft", "DraftError", "Plan", "draft"]
