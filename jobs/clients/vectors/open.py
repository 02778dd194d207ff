#!/usr/bin/env python3
"""Opens what Reeve seals, from its specification (jobs/src/seal/FORMAT.md) and PyPI `cryptography` alone.

  python open.py CASES.json...      for each case a line of JSON: its name, and whether it came out as it says

Import it to read values of your own: open_field, open_stream, from_text, blind_index.
"""
import base64
import hashlib
import hmac
import io
import json
import sys

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

SEALED_CHUNK = 64 * 1024 + 16
DIGITS = {chr(zero + n): str(n) for zero in (0x30, 0x660, 0x6F0) for n in range(10)}


class Refused(Exception):
    """With the class of the reason, in Reeve's own words."""


def joined(*parts):
    return b"".join(len(part).to_bytes(4, "big") + part for part in map(str.encode, parts))


def message(key, purpose, place, sealed, suite, shortest):
    """The cipher of one message and what its tags cover, if key, purpose, header and place are the right ones."""
    if len(sealed) < 64 or sealed[:2] != b"RV":
        raise Refused("not a sealed value")
    if sealed[2] != 1:
        raise Refused("unknown format version")
    if sealed[3] & 15 != suite or sealed[3] >> 4 > 2:
        raise Refused("unknown suite")
    if len(sealed) < shortest:
        raise Refused("not a sealed value")
    context = joined(*place)
    derived = HKDFExpand(SHA256(), 64, purpose.encode() + sealed[:32] + context).derive(key)
    if not hmac.compare_digest(derived[32:], sealed[32:64]):
        raise Refused("wrong key or wrong row")
    return AESGCM(derived[:32]), context


def decrypt(cipher, nonce, sealed, context):
    try:
        return cipher.decrypt(nonce, sealed, context)
    except InvalidTag:
        raise Refused("damaged bytes") from None


def open_field(key, purpose, place, sealed):
    cipher, context = message(key, purpose, place, sealed, suite=1, shortest=80)
    return decrypt(cipher, sealed[20:32], sealed[64:], context)


def open_stream(key, purpose, place, file):
    """Yields the object's chunks. It is whole only if this ends without an exception."""
    head = file.read(64)
    cipher, context = message(key, purpose, place, head, suite=2, shortest=64)
    number, following = 0, file.read(SEALED_CHUNK)
    while True:
        chunk, following = following, file.read(SEALED_CHUNK)
        last = not following
        if len(chunk) < 16 or (number and len(chunk) == 16):
            raise Refused("not a sealed value")
        yield decrypt(cipher, head[20:27] + number.to_bytes(4, "big") + bytes([last]), chunk, context)
        if last:
            return
        number += 1


def from_text(text):
    body = text.removeprefix("rv1.").encode()
    sealed = base64.b64decode(body + b"=" * (-len(body) % 4), altchars=b"-_")
    if text != "rv1." + base64.urlsafe_b64encode(sealed).decode().rstrip("="):
        raise Refused("not a sealed value")
    return sealed


def blind_index(key, version, rule, place, value):
    if rule == "email":
        value = "".join(c.lower() if c.isascii() else c for c in value.strip("\t\n\v\f\r "))
    if rule == "phone":
        value = "".join(DIGITS.get(c, "") for c in value)
    info = b"reeve/index/v1" + version.to_bytes(4, "big") + joined(rule, *place)
    index_key = HKDFExpand(SHA256(), 32, info).derive(key)
    return version.to_bytes(4, "big") + hmac.digest(index_key, value.encode(), "sha256")[:16]


def outcome(case):
    key = base64.b64decode(case["key"])
    if case["kind"] == "index":
        return base64.b64encode(blind_index(key, case["version"], case["rule"], case["place"], case["value"])).decode()
    try:
        sealed = from_text(case["text"]) if case["kind"] == "text" else base64.b64decode(case["sealed"])
        if case["kind"] == "stream":
            plain = b"".join(open_stream(key, case["purpose"], case["place"], io.BytesIO(sealed)))
        else:
            plain = open_field(key, case["purpose"], case["place"], sealed)
    except Refused as refused:
        return f"refused: {refused}"
    return hashlib.sha256(plain).hexdigest()


def main(files):
    wrong = False
    for case in (case for file in files for case in json.load(open(file, encoding="utf-8"))):
        got = outcome(case)
        wrong |= got != case["expected"]
        print(json.dumps({"name": case["name"], "expected": got == case["expected"], "got": got}))
    sys.exit(wrong)


if __name__ == "__main__":
    main(sys.argv[1:])
