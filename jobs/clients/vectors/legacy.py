#!/usr/bin/env python3
"""Makes legacy.json: values as other makers seal them, by PyPI `cryptography` and the standard library alone.

  python legacy.py > legacy.json

Written after each maker's own format, not after Reeve's readers (jobs/src/seal/legacy), which are tried on its output.
All that should be random is made from a counter, so that each run writes the same.
"""
import hashlib
import hmac
import json
import sys
import zlib
from base64 import b64encode
from itertools import count

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

numbers = count()


def random(length):
    return hashlib.sha256(b"legacy vector %d" % next(numbers)).digest()[:length]


def b64(data):
    return b64encode(data).decode()


def gcm(key, iv, aad, plain):
    """Ciphertext and tag; the IV may have any length."""
    encryptor = Cipher(algorithms.AES(key), modes.GCM(iv)).encryptor()
    encryptor.authenticate_additional_data(aad)
    text = encryptor.update(plain) + encryptor.finalize()
    return text, encryptor.tag


def nonce_first(key, aad, plain):
    nonce = random(12)
    return nonce + b"".join(gcm(key, nonce, aad, plain))


def rv0(key, place, plain):
    nonce = random(12)
    context = b"".join(len(part).to_bytes(4, "big") + part for part in map(str.encode, place))
    return b"RV0" + nonce + b"".join(gcm(key, nonce, b"RV0" + context, plain))


def cloak(key, tag, iv_length, plain):
    size = len(tag)
    length = bytes([size]) if size < 128 else bytes([0x81, size]) if size < 256 else bytes([0x82, size >> 8, size & 255])
    iv = random(iv_length)
    text, gcm_tag = gcm(key, iv, b"AES256GCM", plain)
    return b"\x01" + length + tag + iv + gcm_tag + text


def rails_message(key, plain, iv=None, **headers):
    iv = iv or random(12)
    text, tag = gcm(key, iv, b"", plain)
    return {"p": b64(text), "h": {"iv": b64(iv), "at": b64(tag), **headers}}


def rails(key, plain, **headers):
    if len(plain) > 140:
        plain, headers["c"] = zlib.compress(plain), True
    return json.dumps(rails_message(key, plain, **headers), separators=(",", ":")).encode()


def derived(passphrase, salt, digest):
    return hashlib.pbkdf2_hmac(digest, passphrase.encode(), salt.encode(), 1 << 16, 32)


def main():
    key, plain, cases = random(32), "a canary of 30 °C".encode(), []

    def case(name, reader, stored, opens_to=plain, **more):
        cases.append({"name": name, "reader": reader, "stored": b64(stored), "plain": b64(opens_to), **more})

    case("nonce first", "nonce_first", nonce_first(key, b"", plain), key=b64(key), aad="")
    case("nonce first, empty", "nonce_first", nonce_first(key, b"", b""), b"", key=b64(key), aad="")
    case("nonce first, AAD", "nonce_first", nonce_first(key, b"users.email", plain), key=b64(key), aad=b64(b"users.email"))
    place = ["acme", "webhook_secrets", "sealed", "1"]
    case("RV0", "rv0", rv0(key, place, plain), key=b64(key), place=place)

    for tag, iv_length in [(b"AES.GCM.V1", 12), (b"AES.GCM.V1", 16), (b"", 12), (b"t" * 127, 12), (b"t" * 200, 12), (b"t" * 300, 16)]:
        case(f"cloak, tag of {len(tag)}, iv of {iv_length}", "cloak", cloak(key, tag, iv_length, plain),
             key=b64(key), tag=b64(tag), iv_length=iv_length)

    passphrase, salt, old = "EGY8WhulUOXixybod7ZWwMIL68R9o5kC", "xEY0dt6TZcAMg52K7O84wYzkjvbA62Hz", "an older primary key"
    long = ("Ünïcode, and long enough that it is compressed. " * 9).encode()
    for digest in ["sha1", "sha256"]:
        secret, older = derived(passphrase, salt, digest), derived(old, salt, digest)
        more = {"passphrases": [passphrase, old], "salt": salt, "digest": digest}
        reference = b64(hashlib.sha1(secret).hexdigest()[:4].encode())
        case(f"rails, {digest}", "rails", rails(secret, plain), **more)
        case(f"rails, {digest}, empty", "rails", rails(secret, b""), b"", **more)
        case(f"rails, {digest}, the older key", "rails", rails(older, plain), **more)
        case(f"rails, {digest}, compressed", "rails", rails(secret, long), long, **more)
        case(f"rails, {digest}, key reference", "rails", rails(secret, plain, i=reference), **more)
        case(f"rails, {digest}, binary", "rails", rails(secret, b"\xff\x00", e=b64(b"ASCII-8BIT")), b"\xff\x00", **more)
        data_key = random(32)
        envelope = rails(data_key, long, k=rails_message(secret, data_key), i=reference)
        case(f"rails, {digest}, envelope", "rails", envelope, long, **more)
        iv = hmac.digest(secret, plain, "sha256")[:12]
        case(f"rails, {digest}, deterministic", "rails", rails(secret, plain, iv=iv), **more)
    json.dump(cases, sys.stdout, indent=1, ensure_ascii=False)
    print()


main()
