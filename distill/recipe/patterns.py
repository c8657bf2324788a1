"""What text a recipe takes, as patterns that Python, pydantic and JSON Schema read alike, and in words."""

TEXT = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]*$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
LOCATION = r"^[^~\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff][^\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]{0,999}$"
REVISION = r"^[A-Za-z0-9](\.?[A-Za-z0-9_/-]){0,199}$"  # no "..": the hub's client keeps files under this name
KEY = r"^[A-Za-z_][A-Za-z0-9_]{0,99}$"
AMOUNT = r"^[0-9]{1,9}(\.[0-9]{1,9})?[kKmMbB]$"

IN_WORDS = {
    TEXT: "text without control characters",
    NAME: "a name of at most 100 letters, digits, dots, dashes and underscores, a letter or digit first",
    LOCATION: "a path or name of 1 to 1000 characters on one line (~ is not expanded)",
    REVISION: "a git revision: a commit, branch or tag",
    KEY: "a key of letters, digits and underscores",
    AMOUNT: "an amount such as 10M, 0.5B or 300k",
}
