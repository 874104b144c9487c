"""Arguments of keywords that only HAProxy evaluates: what it refuses of them when it starts.

Each check is a short function of the parsed arguments. It raises ValueError for what HAProxy
refuses. Where HAProxy knows more than is here, such as the certificates it has, all is taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping

from spop.engine.samples.arguments import parse_operand, parse_variable
from spop.values import VARIABLE

Check = Callable[..., None]


def _one_of(index: int, *choices: str) -> Check:
    """The argument of an index, if it is there, is one of these."""

    def check(*args: object) -> None:
        if len(args) > index and args[index] not in choices:
            raise ValueError(f"'{args[index]}' is none of {', '.join(filter(None, choices))}")

    return check


_CONDITIONS = (
    "ifexists", "ifnotexists", "ifempty", "ifnotempty", "ifset", "ifnotset", "ifgt", "iflt",
)  # fmt: skip


def _variable(name: str = "", *conditions: str) -> None:
    for condition in conditions:
        _one_of(0, "", *_CONDITIONS)(condition)
    parse_variable(re.sub(r"^p(?=(sess|txn|req|res)\.)|^check(?=\.)", "", name) or name)


def _scope(*args: str) -> None:
    if args and args[0] and args[0] not in ("sess", "txn", "req", "res", "proc"):
        raise ValueError(f"'{args[0]}' is no scope of variables")


def _readable(path: str, *default: object) -> None:
    if not os.path.isfile(path):
        raise ValueError(f"there is no file '{path}'")


def _token(token: str, *occurrence: int) -> None:
    if len(token) != 4:
        raise ValueError(f"'{token}': a token has 4 characters")


def _block(position: str) -> None:
    if position not in ("head", "tail", "first") and not re.fullmatch(r"\d+", position):
        raise ValueError(f"'{position}' is none of head, tail, first, nor the number of a block")


def _second_offset(first: int, length: int, *second: str) -> None:
    if second and not re.fullmatch(r"[+-]?\d+", second[0]):
        raise ValueError(f"'{second[0]}' is no number")


def _encryption(bits: int, *keys: str) -> None:
    if bits not in (128, 192, 256):
        raise ValueError("the size of a key is 128, 192 or 256 bits")
    for key in keys:
        _base64(key)


def _chunks(separator: str, size: int = 0, truncate: int = 0) -> None:
    if not 1 <= size <= 8 or truncate not in (0, 1):
        raise ValueError("chunks have 1 to 8 bytes, and are truncated (1) or not (0)")


def _bytes(offset: str, length: str = "1") -> None:
    for word, least in ((offset, 0), (length, 1)):
        operand = parse_operand(word)
        if isinstance(operand, int) and operand < least:
            raise ValueError(f"'{word}' is less than {least}")


_ALGORITHMS = frozenset(
    (
        "md4", "md5", "md5-sha1", "mdc2", "ripemd", "ripemd160", "rmd160", "sha1", "sha224",
        "sha256", "sha3-224", "sha3-256", "sha3-384", "sha3-512", "sha384", "sha512",
        "sha512-224", "sha512-256", "shake128", "shake256", "sm3", "whirlpool", "blake2b512",
        "blake2s256",
    )
)  # fmt: skip


def _algorithm(name: str, key: str) -> None:
    if name.lower() not in _ALGORITHMS:
        raise ValueError(f"'{name}' is no message digest of OpenSSL")
    _base64(key)


def _json_path(path: str, *kind: str) -> None:
    if not path:
        raise ValueError("the path is empty")
    _one_of(0, "", "int")(*kind)


_SIGNATURES = re.compile("(?:HS|RS|ES|PS)(?:256|384|512)|none")


def _signature(algorithm: str, key: str) -> None:
    if not (_SIGNATURES.fullmatch(algorithm) or VARIABLE.fullmatch(algorithm)):
        raise ValueError(f"'{algorithm}' is no JWT algorithm")


_BASE64 = re.compile("(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}(?:==|[A-Za-z0-9+/]=))?")


def _base64(secret: str) -> None:
    if not VARIABLE.fullmatch(secret) and not _BASE64.fullmatch(secret):
        raise ValueError("the secret is neither in base64 nor a variable")


def _protobuf(field: str, *kind: str) -> None:
    if not re.fullmatch("(?:[0-9]*[.])*[0-9]+", field):
        raise ValueError(f"'{field}' is no number of a field, as 1.2")
    _one_of(0, *_FIELD_TYPES)(*kind)


def _key_type(key: str) -> None:
    if '"kty"' not in key and not VARIABLE.fullmatch(key):
        raise ValueError("the key has no type 'oct', 'RSA' or 'EC'")


def _named(names: Iterable[str]) -> Callable[[str], bool]:
    known = {name.lower() for name in names}
    return lambda name: name.lower() in known or re.fullmatch("[1-9][0-9]*", name) is not None


_FIX_TAG = _named(
    ("MsgType", "CheckSum", "BodyLength", "TargetCompID", "BeginString", "SenderCompID")
)
_MQTT_TYPE = _named(
    (
        "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "SUBSCRIBE",
        "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH",
    )
)  # fmt: skip
_MQTT_FIELD = _named(
    (
        "flags", "reason_code", "protocol_name", "protocol_version", "client_identifier",
        "will_topic", "will_payload", "username", "password", "keepalive",
    )
)  # fmt: skip
_TLV = _named(
    (
        "ALPN", "AUTHORITY", "CRC32C", "NOOP", "UNIQUE_ID", "SSL", "SSL_VERSION", "SSL_CN",
        "SSL_CIPHER", "SSL_SIG_ALG", "SSL_KEY_ALG", "NETNS",
    )
)  # fmt: skip


def _fix(tag: str) -> None:
    if not _FIX_TAG(tag):
        raise ValueError(f"'{tag}' is no FIX tag")


def _mqtt(kind: str, field: str) -> None:
    if not _MQTT_TYPE(kind) or not _MQTT_FIELD(field):
        raise ValueError(f"'{kind}' has no MQTT field '{field}'")


def _tlv(kind: str) -> None:
    if not _TLV(kind) and not re.fullmatch("0?|0[xX][0-9A-Fa-f]+", kind):
        raise ValueError(f"'{kind}' is no type of a TLV")


def _control(*args: str) -> None:
    if args and args[0] and not re.fullmatch("[0-9]+|0[xX][0-9A-Fa-f]+", args[0]):
        raise ValueError(f"'{args[0]}' is no integer")


def _acl(name: str, *others: str) -> None:
    raise ValueError(f"there is no ACL '{name}' in the proxy")


def _when(condition: str, *acl: str) -> None:
    name = condition.removeprefix("!")
    if name == "acl":
        _acl(*(acl or ("",)))
    _one_of(0, "stopping", "normal", "error", "forwarded", "toapplet", "processed")(name)


def _debug(*args: str) -> None:
    if len(args) > 1:
        _one_of(1, "stdout", "stderr", "buf0")(*args)


def _userlist(name: str) -> None:
    if not name:
        raise ValueError("the name of a userlist is missing")


def _server(*name: str) -> None:
    if name and not name[0]:
        raise ValueError("the name of a server is missing")


def _parameter(name: str, *delimiter: str) -> None:
    if delimiter and len(delimiter[0]) != 1:
        raise ValueError("a delimiter has one character")


_FIELD_TYPES = (
    "int32", "uint32", "sint32", "int64", "uint64", "sint64", "bool", "enum", "fixed32",
    "sfixed32", "float", "fixed64", "sfixed64", "double",
)  # fmt: skip
_US_MS = _one_of(0, "us", "ms")
_DATE = _one_of(0, "s", "ms", "us")
_NAME_FORMAT = _one_of(2, "", "rfc2253")
_MAPS = ("beg", "dir", "dom", "end", "int", "ip", "reg", "str", "sub")
_DN = ("ssl_c_i_dn", "ssl_c_r_dn", "ssl_c_s_dn", "ssl_f_i_dn", "ssl_f_s_dn", "ssl_s_i_dn")

CHECKS: Mapping[str, Check] = {
    "accept_date": _DATE,
    "acl": _acl,
    "aes_cbc_dec": _encryption,
    "aes_cbc_enc": _encryption,
    "aes_gcm_dec": _encryption,
    "aes_gcm_enc": _encryption,
    "bc_rtt": _US_MS,
    "bc_rttvar": _US_MS,
    "bytes": _bytes,
    "debug": _debug,
    "distcc_body": _token,
    "distcc_param": _token,
    "dump_all_vars": _scope,
    "fc_pp_tlv": _tlv,
    "fc_rtt": _US_MS,
    "fc_rttvar": _US_MS,
    "fix_tag_value": _fix,
    "has_ctl": _control,
    "hmac": _algorithm,
    "http_auth": _userlist,
    "http_auth_group": _userlist,
    "json_query": _json_path,
    "jwt_decrypt_jwk": _key_type,
    "jwt_decrypt_secret": _base64,
    "jwt_header_query": _one_of(1, "", "int"),
    "jwt_payload_query": _one_of(1, "", "int"),
    "jwt_verify": _signature,
    "jwt_verify_cert": _signature,
    "le2dec": _chunks,
    "mqtt_field_value": _mqtt,
    "param": _parameter,
    "payload_lv": _second_offset,
    "protobuf": _protobuf,
    "query": _one_of(0, "", "with_qm"),
    "req.payload_lv": _second_offset,
    "request_date": _DATE,
    "res.payload_lv": _second_offset,
    "set-var": _variable,
    "ssl_s_s_dn": _NAME_FORMAT,
    "ungrpc": _protobuf,
    "unset-var": _variable,
    "when": _when,
    **dict.fromkeys(_DN, _NAME_FORMAT),
    **{f"map_{method}_key": _readable for method in _MAPS},
    **{
        f"internal.htx_blk.{part}": _block
        for part in ("data", "hdrname", "hdrval", "size", "start_line", "type")
    },
    **{
        f"srv_{what}": _server
        for what in (
            "conn", "conn_free", "is_up", "iweight", "queue", "sess_rate", "uweight", "weight",
        )
    },
}  # fmt: skip
"""The check of the arguments of a keyword, by name."""

LAST_CHECKED = {"debug": (3, 0)}
"""The last branch that makes the check, if later ones make it no more."""
