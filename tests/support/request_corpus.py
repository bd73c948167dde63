"""Byte sequences that two HTTP implementations may read in two ways, as one table.

A row has a name, the bytes, the statuses of the responses in their order, whether another
request is read from the connection, and the bodies that are published.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import NamedTuple

from tests.support.harness import HANDSHAKE, HOST, SEND_PATH, WEBSOCKET_PATH

__all__ = ["MARKER", "ROWS", "Ending", "Row"]


def fill(data: bytes) -> bytes:
    """Put the host in place of ``$H``, and the target of a send in place of ``$T``."""
    return data.replace(b"$H", HOST.encode()).replace(b"$T", SEND_PATH.encode())


HOST_LINE = b"Host: $H\r\n"
ONE = b"Content-Length: 1\r\n\r\n1"
SEND = b"POST $T HTTP/1.1\r\n" + HOST_LINE + b"Authorization: Bearer good\r\n"
"""A send, but for the end of its head and its body."""

CHUNKED = SEND + b"Transfer-Encoding: chunked\r\n\r\n"
NOWHERE = b"POST /nowhere HTTP/1.1\r\n" + HOST_LINE
OPTIONS = b"OPTIONS * HTTP/1.1\r\n" + HOST_LINE
WEBSOCKET = b"GET %s HTTP/1.1\r\n" % WEBSOCKET_PATH.encode() + HOST_LINE
UPGRADE = WEBSOCKET + "".join(f"{name}: {value}\r\n" for name, value in HANDSHAKE.items()).encode()
SMUGGLED = fill(SEND + ONE).replace(b"good", b"smuggled")
"""A request whose token must never be validated."""

COVERED = b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED
COVERED_CHUNK = b"%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\n\r\n"
MARKER = fill(SEND).replace(b"good", b"marker") + b'Content-Length: 3\r\n\r\n"M"'
"""Is sent behind each row. Its token must be validated only if the connection stays open."""


class Ending(Enum):
    """What becomes of the connection behind the last response."""

    OPEN = "the next request is read"
    CLOSES = "nothing else is read"
    WAITS = "more of the request is awaited, until its deadline"


OPEN, CLOSES, WAITS = Ending


class Row(NamedTuple):
    name: str
    data: bytes
    statuses: list[int]
    ending: Ending
    bodies: tuple[bytes, ...] = ()


def sends(*rows: tuple[str, bytes, list[int], Ending]) -> Iterator[Row]:
    """Rows of a send; where the status is 200, its body ``1`` is published."""
    for name, data, statuses, ending in rows:
        yield Row(name, fill(SEND + data), statuses, ending, (b"1",) * statuses.count(200))


def each(
    name: str, values: Iterable[bytes], template: bytes, statuses: list[int], ending: Ending
) -> Iterator[Row]:
    """A row for each value, which is put into the template's ``@``."""
    for value in values:
        shown = f"{name} {value[:40]!r}"
        bodies = (b"1",) * statuses.count(200)
        yield Row(shown, fill(template.replace(b"@", value)), statuses, ending, bodies)


LENGTHS = [
    *sends(
        ("a length", b"Content-Length: 1\r\n\r\n1", [200], OPEN),
        ("a length of 0", b"Content-Length: 0\r\n\r\n", [400], OPEN),
        ("a missing length is a length of 0", b"\r\n", [400], OPEN),
        ("a name in upper case", b"CONTENT-LENGTH: 1\r\n\r\n1", [200], OPEN),
        ("a length with an underscore", b"Content_Length: 1\r\n\r\n", [400], OPEN),
        ("a length above the limit", b"Content-Length: 1001\r\n\r\n1", [413], CLOSES),
        ("a length of 64 bits", b"Content-Length: 18446744073709551615\r\n\r\n1", [413], CLOSES),
        ("less than the length", b"Content-Length: 900\r\n\r\n1", [], WAITS),
        ("two equal lengths", b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n1", [400], CLOSES),
        ("two lengths", b"Content-Length: 1\r\nContent-Length: 9\r\n\r\n1", [400], CLOSES),
        ("two lengths apart", b"Content-Length: 9\r\nX: 1\r\ncontent-length: 1\r\n\r\n1", [400],
         CLOSES),
        ("two lengths of 0", b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n", [400], CLOSES),
    ),
    *each("a length", (b"1 ", b"1\t", b"1 \t ", b"\t1", b"    1", b"01", b"0000000000000001"),
          SEND + b"Content-Length: @\r\n\r\n1", [200], OPEN),
    *each("a bad length",
          (b"", b" ", b"1, 1", b"1,1", b"1,2", b",1", b"1,", b"+1", b"-1", b"-0", b"0x1", b"1_0",
           b"1 1", b"1 0", b"1.0", b"1.", b"1e0", b"1;", b'"1"', b"'1'", b"one", b"\xc2\xb9",
           b"\xef\xbc\x91", b"\xd9\xa1", b"1\0", b"\x001", b"1\x0b", b"\x0c1", b"1\xa0", b"1\r",
           b"\r1", b"1\r0", b"1\n", b"\n1", b"1\r\n 0", b"1\r\n\t", b"\r\n 1", b"0\r\n 1",
           b"18446744073709551616", b"18446744073709551617", b"1" * 40, b"9" * 4301),
          SEND + b"Content-Length: @\r\n\r\n1", [400], CLOSES),
    *each("a bad name of a length",
          (b"Content-Length : 1", b"Content-Length\t: 1", b" Content-Length: 1",
           b"\tContent-Length: 1", b"X: 1\r\n Content-Length: 1", b"Content Length: 1",
           b"Content-Length\0: 1", b"\0Content-Length: 1", b"Content-Length\r: 1",
           b"\rContent-Length: 1", b"\nContent-Length: 1", b"X: 1\nContent-Length: 1",
           b"X: 1\rContent-Length: 1", b"Content-Length: 1\nX: 1", b"Content-Length 1",
           b"Content-Length", b"Content-Length\r\n: 1", b"\xc4\x8content-length: 1",
           b"\x0bContent-Length: 1", b"Content-Length;: 1", b"Content-Length=: 1"),
          SEND + b"@\r\n\r\n1", [400], CLOSES),
]  # fmt: skip

CODINGS = [
    *sends(
        ("chunked", b"Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n", [200], OPEN),
        ("a name in mixed case", b"tRANSFER-eNCODING: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n", [200],
         OPEN),
        ("a coding with an underscore", b"Transfer_Encoding: chunked\r\n\r\n", [400], OPEN),
        ("TE is another header", b"TE: chunked\r\n" + ONE, [200], OPEN),
        ("Content-Encoding is another header", b"Content-Encoding: chunked\r\n" + ONE, [200], OPEN),
        ("a length, chunked", b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
         [400], CLOSES),
        ("chunked, a length", b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nX",
         [400], CLOSES),
        ("a length of 0, chunked",
         b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n", [400],
         CLOSES),
        ("chunked, a length with a body behind",
         b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED, [400],
         CLOSES),
        ("a length, and a bad coding",
         b"Content-Length: 1\r\nTransfer-Encoding: xchunked\r\n\r\n1", [400], CLOSES),
        ("a length, and an empty coding", b"Content-Length: 1\r\nTransfer-Encoding:\r\n\r\n1",
         [400], CLOSES),
        ("a length, and chunked behind a blank",
         b"Content-Length: 6\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\nX", [400], CLOSES),
        ("a length, and chunked in a folded line",
         b"Content-Length: 6\r\nX: 1\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nX", [400],
         CLOSES),
        ("a length, and chunked in a bare line",
         b"Content-Length: 6\r\nX: 1\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX", [400], CLOSES),
        ("chunked twice",
         b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
         [400], CLOSES),
        ("chunked, identity",
         b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", [400],
         CLOSES),
        ("identity, chunked",
         b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [400],
         CLOSES),
        ("chunked, then empty",
         b"Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n", [400], CLOSES),
    ),
    *each("a spelling of chunked", (b"CHUNKED", b"Chunked", b" chunked", b"\tchunked",
                                     b"chunked ", b" \t chunked  "),
          SEND + b"Transfer-Encoding:@\r\n\r\n1\r\n1\r\n0\r\n\r\n", [200], OPEN),
    *each("a bad transfer coding",
          (b"", b" ", b"xchunked", b"chunkedx", b"chunk", b"chunked2", b"x-chunked", b"chunked;",
           b"chunked;q=1", b"chunked,", b",chunked", b", chunked", b"chunked, ", b"chunked,chunked",
           b"chunked, chunked", b"chunked, identity", b"identity, chunked", b"identity", b"gzip",
           b"gzip, chunked", b"chunked, gzip", b"gzip chunked", b"chunked chunked", b"chu nked",
           b'"chunked"', b"'chunked'", b"\x0bchunked", b"\x0cchunked", b"chunked\x0b",
           b"chunked\0", b"\0chunked", b"chunked\t", b" \t chunked \t ", b"\xa0chunked",
           b"chunked\xc2\xa0", b"\xffchunked",
           b"chunked\r", b"\rchunked", b"\nchunked", b"chunked\n", b"\r\n chunked",
           b"\r\n\tchunked", b"chunked\r\n ", b"chunked\r\n , identity", b"ch\xc3\xbcnked"),
          SEND + b"Transfer-Encoding:@\r\n\r\n1\r\n1\r\n0\r\n\r\n", [400], CLOSES),
    *each("a bad name of a transfer coding",
          (b"Transfer-Encoding : chunked", b" Transfer-Encoding: chunked",
           b"X: 1\r\n Transfer-Encoding: chunked", b"X: 1\nTransfer-Encoding: chunked",
           b"X: 1\rTransfer-Encoding: chunked", b"Transfer Encoding: chunked",
           b"Transfer-Encoding\0: chunked", b"\0Transfer-Encoding: chunked",
           b"Transfer-Encoding\r\n : chunked", b"Transfer-Encoding\x0b: chunked",
           b"Transfer-Encoding chunked", b"Transfer-Encoding"),
          SEND + b"@\r\n\r\n1\r\n1\r\n0\r\n\r\n", [400], CLOSES),
    Row("chunked in HTTP/1.0", SEND.replace(b"1.1", b"1.0", 1)
        + b"Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n", [400], CLOSES),
    Row("chunked and a length in HTTP/1.0", SEND.replace(b"1.1", b"1.0", 1)
        + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n1", [400], CLOSES),
]  # fmt: skip

CHUNKS = [
    *each("chunks", (b"1\r\n1\r\n", b"01\r\n1\r\n", b"0000000000000001\r\n1\r\n",
                     b"1;x\r\n1\r\n", b"1;x=y\r\n1\r\n", b'1;x="y z"\r\n1\r\n', b"1;x;y\r\n1\r\n",
                     b"1;" + b"x" * 250 + b"\r\n1\r\n"),
          CHUNKED + b"@0\r\n\r\n", [200], OPEN),
    *each("last chunks", (b"0", b"00", b"0000000000000000", b"0;x=y"),
          CHUNKED + b"1\r\n1\r\n@\r\n\r\n", [200], OPEN),
    Row("sizes in either case", CHUNKED + b"a\r\n[1,2,3,4,5\r\nA\r\n,6,7,8,9] \r\n0\r\n\r\n", [200],
        OPEN, (b"[1,2,3,4,5,6,7,8,9]",)),
    *each("a bad chunk size",
          (b"", b" ", b" 1", b"\t1", b"+1", b"-1", b"-0", b"0x1", b"0X1", b"x", b"1x", b"g", b"1h",
           b"1_", b"1 1", b"1,", b"1.", b'"1"', b"\xc2\xb9", b"\xef\xbc\x91", b"\0", b"1\0",
           b"1\x0b", b"1\xa0", b"\xff1", b";", b";x", b"1\r", b"\r1", b"1;", b"1 ;x",
           b"1\t;x", b"1;\r", b"1;x\ry", b"1;x\0",
           b"1;" + b"x" * 260, b"1" + b" " * 260,
           b"00000000000000001", b"10000000000000000", b"10000000000000001", b"1" * 300),
          CHUNKED + b"@\r\n1\r\n0\r\n\r\n", [400], CLOSES),
    *each("bare line feeds in chunks",
          (b"1\n1\r\n0\r\n\r\n", b"1\r\n1\n0\r\n\r\n", b"1\n1\n0\n\n", b"1;x\n1\r\n0\r\n\r\n",
           b"1;x\n1\r\n1\r\n0\r\n\r\n", b"1\r\n1\r\n0\n\r\n", b"1\r\n1\r\n0\n\n"),
          CHUNKED + b"@", [400], CLOSES),
    *each("a bad end of chunk data", (b"", b"\r", b"\n", b"\r\r\n", b"\n\r\n", b"2\r\n",
                                               b" \r\n", b"\0\0", b"xx"),
          CHUNKED + b"1\r\n1@0\r\n\r\n", [400], CLOSES),
    Row("a carriage return ends the size", CHUNKED + b"1\r1\r\n0\r\n\r\n", [400], CLOSES),
    Row("more data than the size", CHUNKED + b"1\r\n12\r\n0\r\n\r\n", [400], CLOSES),
    Row("less data than the size", CHUNKED + b"2\r\n1\r\n0\r\n\r\n", [400], CLOSES),
    Row("an extension of 1 MB", CHUNKED + b"1;" + b"x" * 1_000_000 + b"\r\n1\r\n0\r\n\r\n", [400],
        CLOSES),
    Row("a smuggled request in an extension", CHUNKED + b"1;\n" + SMUGGLED, [400], CLOSES),
    Row("a chunk above the limit", CHUNKED + b"3e9\r\n" + b"1" * 1001 + b"\r\n0\r\n\r\n", [413],
        CLOSES),
    Row("a size of 64 bits", CHUNKED + b"ffffffffffffffff\r\n1\r\n0\r\n\r\n", [413], CLOSES),
    Row("chunks above the limit", CHUNKED + b"1\r\n1\r\n" * 1001 + b"0\r\n\r\n", [413], CLOSES),
    Row("chunks above the limit, then a bad one", CHUNKED + b"1\r\n1\r\n" * 1001 + b"x\r\n", [413],
        CLOSES),
    Row("no last chunk", CHUNKED + b"1\r\n1\r\n", [400], CLOSES),
    Row("a chunk without its end", CHUNKED + b"3e0\r\n1", [], WAITS),
    Row("a smuggled request in a chunk", CHUNKED + COVERED_CHUNK, [400], OPEN),
    Row("a chunked body of 0 bytes", CHUNKED + b"0\r\n\r\n", [400], OPEN),
    Row("a body behind the last chunk", CHUNKED + b"0\r\n\r\n1", [400, 405], CLOSES),
]  # fmt: skip

TRAILERS = [
    *each("trailers", (b"X: 1\r\n", b"X: 1\r\nY: 2\r\n", b"X:\r\n", b"Connection: close\r\n",
                       b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"Host: elsewhere\r\n",
                       b"Authorization: Bearer smuggled\r\n", b"Expect: x\r\n",
                       b"X: " + b"x" * 4000 + b"\r\n", b"X: 1\r\n" * 99),
          CHUNKED + b"1\r\n1\r\n0\r\n@\r\n", [200], OPEN),
    *each("bad trailers",
          (b"no colon\r\n", b"\r", b" X: 1\r\n", b"X : 1\r\n", b": 1\r\n", b"X: 1\nY: 2\r\n",
           b"X: 1\n", b"\n", b"X: 1\rY: 2\r\n", b"X: \0\r\n", b"X\0: 1\r\n", b"X: 1\r\n Y: 2\r\n",
           b"X: 1\r\n\tY\r\n", b"\xff: 1\r\n", b"X: 1\r\r\n",
           b"X: " + b"x" * 4100 + b"\r\n", b"X: 1\r\n" * 100, b"X" * 5000,
           b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: gzip\r\n"),
          CHUNKED + b"1\r\n1\r\n0\r\n@\r\n", [400], CLOSES),
    Row("no end of the trailers", CHUNKED + b"1\r\n1\r\n0\r\n", [400], CLOSES),
    Row("a request in place of the trailers", CHUNKED + b"1\r\n1\r\n0\r\n" + SMUGGLED, [400],
        CLOSES),
]  # fmt: skip

LINES = [
    *each("a bad header line",
          (b"no colon", b": no name", b" : 1", b"X : 1", b"X\t: 1", b" X: 1", b"\tX: 1", b"X Y: 1",
           b"X\tY: 1", b"X\0: 1", b"\0X: 1", b"X: \0", b"X: 1\x002", b"X: \x01", b"X: \x7f",
           b"X: \x0b", b"X: 1\x1b", b"X\x7f: 1", b"X\xff: 1", b"\xc3\x9c: 1", b"(X): 1", b"X@: 1",
           b"X[0]: 1", b'"X": 1', b"{X}: 1", b"X/Y: 1", b"X,Y: 1", b"X\\: 1", b"<X>: 1", b"X=1",
           b"X?: 1", b"GET / HTTP/1.1", b"\xef\xbb\xbfX: 1"),
          SEND + b"@\r\n" + ONE, [400], CLOSES),
    *each("a good header line",
          (b"X: 1", b"X:1", b"X:\t1", b"X: 1 ", b"X:", b"X: ", b"X:   \t ", b"X_Y: 1", b"X.Y: 1",
           b"!#$%&'*+-.^_`|~: 1", b"1: 1", b"X: :", b"X: a:b", b"X: 1\t2", b"X: \xff\x80",
           b'X: "\\"', b"X: \xef\xbb\xbf", b"X-Forwarded-For: x", b"X: " + b"x" * 16000),
          SEND + b"@\r\n" + ONE, [200], OPEN),
    *each("a folded line", (b"X: 1\r\n 2", b"X: 1\r\n\t2", b"X:\r\n 1", b"X: 1\r\n \r\nY: 1",
                            b"X: 1\r\n ", b"X: 1\r\n " + SMUGGLED[:-5]),
          SEND + b"@\r\n" + ONE, [400], CLOSES),
    *each("a bare carriage return", (b"X: 1\r2", b"X: 1\rY: 2", b"X\r: 1", b"\rX: 1", b"X:\r1",
                                     b"X: 1\r", b"\r", b"X: 1\r\r", b"X: 1\r Y"),
          SEND + b"@\r\n" + ONE, [400], CLOSES),
    *each("a bare line feed", (b"X: 1\nY: 2", b"X\n: 1", b"\nX: 1", b"X:\n1", b"X: 1\n", b"\n",
                               b"X: 1\n\nY: 1", b"X: 1\n Y: 1", b"X: 1\n\n" + SMUGGLED[:-5]),
          SEND + b"@\r\n" + ONE, [400], CLOSES),
    *each("a bad end of the head", (b"\n", b"\r", b"\n\r", b"\r\r", b"\n\n", b" \r\n",
                                             b"\t\r\n", b"\0\r\n", b"\r\n\r" * 2),
          SEND + b"Content-Length: 0@" + ONE[:-5] + b"\r\n\r\n1", [400], CLOSES),
    Row("line feeds only", SEND.replace(b"\r\n", b"\n") + b"Content-Length: 1\n\n1", [400], CLOSES),
    Row("a line feed behind the request line", SEND.replace(b"\r\n", b"\n", 1) + ONE, [400],
        CLOSES),
    Row("carriage returns only", SEND.replace(b"\r\n", b"\r") + b"Content-Length: 1\r\r1", [400],
        CLOSES),
    Row("a blank line of blanks", SEND + b" \r\n\r\n", [400], CLOSES),
    Row("a header before a blank first line", OPTIONS[:20] + b" X: 1\r\n" + HOST_LINE + b"\r\n",
        [400], CLOSES),
    Row("4 empty lines before a request", b"\r\n" * 4 + SEND + ONE, [200], OPEN, (b"1",)),
    Row("4 empty lines between requests", (SEND + ONE + b"\r\n" * 4) * 2, [200, 200], OPEN,
        (b"1", b"1")),
    Row("5 empty lines before a request", b"\r\n" * 5 + SEND + ONE, [400], CLOSES),
    *each("before a request", (b"\n", b"\r", b"\r\r\n", b" ", b" \r\n", b"\t", b"\0", b"\n\n",
                               b"\r\n\n", b"\r\n ", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff",
                               b"\x1a", b"\r\n\r"),
          b"@" + OPTIONS + b"\r\n", [400], CLOSES),
    Row("100 headers", SEND + b"X: 1\r\n" * 97 + ONE, [200], OPEN, (b"1",)),
    Row("101 headers", SEND + b"X: 1\r\n" * 98 + ONE, [400], CLOSES),
    Row("a header of 17 KB", SEND + b"X: " + b"x" * 17_000 + b"\r\n" + ONE, [400], CLOSES),
    Row("a name of 17 KB", SEND + b"x" * 17_000 + b": 1\r\n" + ONE, [400], CLOSES),
    Row("a head of 64 KiB without an end", SEND + b"X: " + b"x" * 65_536, [400], CLOSES),
    Row("64 KiB of headers of one byte", SEND + b"X:\r\n" * 16_384 + ONE, [400], CLOSES),
    Row("64 KiB of lines of one byte", SEND + b"X\r\n" * 21_845 + ONE, [400], CLOSES),
    Row("a token of 32 KiB", SEND.replace(b"good", b"g" * 32_768) + ONE, [200], OPEN, (b"1",)),
    Row("two tokens", SEND + b"Authorization: Bearer smuggled\r\n" + ONE, [401], OPEN),
    Row("no token", SEND.replace(b"Authorization", b"X") + ONE, [401], OPEN),
    Row("a token in a header with an underscore", SEND.replace(b"Authorization", b"AUTHORIZATION_")
        + ONE, [401], OPEN),
]  # fmt: skip

FIRST_LINES = [
    *each("a bad request line",
          (b"", b"GET", b"GET ", b"GET /", b"GET / ", b"GET /nowhere", b"GET HTTP/1.1",
           b"GET  HTTP/1.1", b" / HTTP/1.1", b"/ HTTP/1.1", b"GET  / HTTP/1.1", b"GET /  HTTP/1.1",
           b"GET / HTTP/1.1 ", b" GET / HTTP/1.1", b"\tGET / HTTP/1.1", b"GET\t/\tHTTP/1.1",
           b"GET\t/ HTTP/1.1", b"GET /\tHTTP/1.1", b"GET / HTTP/1.1\t", b"GET /a b HTTP/1.1",
           b"GET / x HTTP/1.1", b"GET / HTTP/1.1 HTTP/1.1", b"GET / HTTP/1.1 x", b"G\0T / HTTP/1.1",
           b"GET /\0 HTTP/1.1 ", b"GET / HTTP/1.1\0", b"GET / HTTP/1.1\r", b"GET /\rX HTTP/1.1",
           b"GET\r/ HTTP/1.1", b"GET / \rHTTP/1.1", b"GET /\n HTTP/1.1", b"GET\x0b/\x0bHTTP/1.1",
           b"GET\xa0/\xa0HTTP/1.1", b"G(T / HTTP/1.1", b"G/T / HTTP/1.1", b"\xc7ET / HTTP/1.1",
           b"GET: / HTTP/1.1", b'"GET" / HTTP/1.1', b"GET,POST / HTTP/1.1", b"HTTP/1.1 200 OK",
           b"SSH-2.0-OpenSSH_9.2", b"PROXY TCP4 192.0.2.1 192.0.2.9 5000 443", b"QUIT", b"{}"),
          b"@\r\n" + HOST_LINE + b"\r\n", [400], CLOSES),
    *each("a bad version",
          (b"HTTP/1.2", b"HTTP/1.10", b"HTTP/1.01", b"HTTP/01.1", b"HTTP/1.", b"HTTP/.1", b"HTTP/1",
           b"HTTP/11", b"HTTP/1,1", b"HTTP/1.1.1", b"HTTP/0.9", b"HTTP/2", b"HTTP/2.0", b"HTTP/3",
           b"HTTP/9.9", b"HTTP/-1.1", b"HTTP/+1.1", b"HTTP/1.1a", b"HTTP/1.x", b"HTTP /1.1",
           b"HTTP/ 1.1", b"HTTP/1. 1", b"http/1.1", b"Http/1.1", b"HTTPS/1.1", b"HTP/1.1", b"1.1",
           b"XTTP/1.1", b"RTSP/1.0", b"ICE/1.0", b"HTTP/1.\xb9", b"HTTP/\xef\xbc\x91.1", b"HTTP"),
          b"GET / @\r\n" + HOST_LINE + b"\r\n", [400], CLOSES),
    Row("HTTP/0.9", b"GET /\r\n", [400], CLOSES),
    Row("HTTP/0.9 without a line end", b"GET /nowhere", [400], CLOSES),
    Row("a preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", [400],
        CLOSES),
    Row("a preface of HTTP/2 with another version", b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n", [400],
        CLOSES),
    Row("the beginning of TLS", b"\x16\x03\x01\0\xa5\x01\0\0\xa1\x03\x03" + bytes(32), [400],
        CLOSES),
    Row("UTF-16", (OPTIONS + b"\r\n").decode().encode("utf-16"), [400], CLOSES),
    Row("a request line of 17 KB", b"GET /%s HTTP/1.1\r\n" % (b"x" * 17_000) + HOST_LINE + b"\r\n",
        [400], CLOSES),
    Row("a target of 16,000 bytes", b"GET /%s HTTP/1.1\r\n" % (b"x" * 16_000) + HOST_LINE + b"\r\n",
        [404], OPEN),
    Row("a method of 17 KB", b"G" * 17_000 + b" / HTTP/1.1\r\n" + HOST_LINE + b"\r\n", [400],
        CLOSES),
    *each("a method of another case or name", (b"get", b"post", b"Post", b"FOO", b"GETX", b"XPOST",
                                               b"P", b"GE", b"!", b"PO-ST", b"P0ST"),
          b"@ $T HTTP/1.1\r\n" + HOST_LINE + b"\r\n", [405], CLOSES),
    *each("a method that is known", (b"GET", b"HEAD", b"DELETE", b"PATCH", b"TRACE", b"PROPFIND",
                                     b"M-SEARCH", b"QUERY", b"SOURCE"),
          b"@ $T HTTP/1.1\r\n" + HOST_LINE + b"\r\n", [405], OPEN),
    *each("a method of RTSP or HTTP/2", (b"DESCRIBE", b"SETUP", b"PLAY", b"PRI"),
          b"@ $T HTTP/1.1\r\n" + HOST_LINE + b"\r\n", [400], CLOSES),
]  # fmt: skip

TARGETS = [
    *each("in absolute form",
          (b"http://$H$T", b"https://$H$T",
           b"HTTP://CELL1.unit1.Example$T",
           b"https://$H:443$T",
           b"http://$H$T?x=y"),
          b"POST @ HTTP/1.1\r\nHost: elsewhere.example\r\nAuthorization: Bearer good\r\n" + ONE,
          [200], OPEN),
    *each("an absolute form of another unit",
          (b"http://elsewhere.example$T", b"http://$T", b"http://:80$T",
           b"http://x@$H$T", b"http://$H:x$T",
           b"http://$H@elsewhere.example$T"),
          SEND.replace(b"$T", b"@") + ONE, [400], OPEN),
    *each("another absolute form",
          (b"ws://$H$T", b"ftp://$H$T",
                      b"http://$H", b"http://$H?$T",
           b"http://$H$T#x", b"//$H$T"),
          SEND.replace(b"$T", b"@") + ONE, [404], OPEN),
    Row("an absolute form without Host", b"POST http://$H$T HTTP/1.1\r\n"
        + b"Authorization: Bearer good\r\n" + ONE, [400], CLOSES),
    *each("half of an absolute form", (b"http:/$H$T", b"http:$T", b"http:", b"http"),
          SEND.replace(b"$T", b"@") + ONE, [404], CLOSES),
    *each("in authority form", (b"$H", b"$H:443", b"x@$H",
                                b"[::1]:443", b"127.0.0.1:80", b"%2f", b".", b"?x"),
          SEND.replace(b"$T", b"@") + ONE, [404], CLOSES),
    *each("CONNECT", (b"elsewhere.example:443", b"$H:443", b"[::1]:443"),
          b"CONNECT @ HTTP/1.1\r\n" + HOST_LINE + b"\r\n", [404], CLOSES),
    *each("CONNECT", (b"$T", b"*"), b"CONNECT @ HTTP/1.1\r\n" + HOST_LINE + b"\r\n", [405],
          CLOSES),
    Row("CONNECT with a body", b"CONNECT elsewhere.example:443 HTTP/1.1\r\n" + HOST_LINE
        + COVERED, [404], CLOSES),
    Row("CONNECT with a request behind", b"CONNECT elsewhere.example:443 HTTP/1.1\r\n" + HOST_LINE
        + b"\r\n" + SMUGGLED, [404], CLOSES),
    Row("OPTIONS in asterisk form", OPTIONS + b"\r\n", [200], OPEN),
    Row("OPTIONS in asterisk form with a body", OPTIONS + COVERED, [200], OPEN),
    *each("in asterisk form", (b"GET", b"POST", b"HEAD", b"PUT", b"DELETE"),
          b"@ * HTTP/1.1\r\n" + HOST_LINE + b"\r\n", [405], OPEN),
    *each("a target without a topic",
          (b"/", b"//", b"/.", b"/../", b"/$T", b"$T//", b"$T/..", b"/%",
           b"/%0", b"/%zz", b"/%00", b"/%0d%0a", b"/%0D%0AHost:%20x", b"/%20HTTP/1.1", b"/%2f",
           b"/%u0041", b"/%c0%af", b"$T%", b"$T%00", b"$T%0d%0aX:1",
           b"$T#", b"$T#x", b"/#", b"$T%23", b"$T%3fx", b"$T;x",
           b"$T\\", b"/box1\\col/topic/name", b"/<>",
           b'/"', b"/^", b"/`", b"/{}", b"/|", b"**", b"*/", b"/http://$H$T"),
          SEND.replace(b"$T", b"@") + ONE, [404], OPEN),
    *each("a target with bytes that no URL has", (b"\0", b"\x01", b"\x7f", b"\x80", b"\xff",
                                                 b"\xc3\xa9", b"\xe2\x80\xa8", b"\x0b", b"\x0c",
                                                 b"\t", b"\xa0", b"\xef\xbb\xbf"),
          SEND.replace(b"$T", b"$T@") + ONE, [404], CLOSES),
    *each("another spelling of the target", (b"$T?", b"$T?x", b"$T?a=b&c=%zz",
                                             b"$T?/../", b"$T?x?y", b"$T?#",
                                             b"/box1/col/topic/%6eame", b"$T/", b"$T/?x",
                                             b"$T?access_token=smuggled"),
          SEND.replace(b"$T", b"@") + ONE, [200], OPEN),
]  # fmt: skip

HOSTS = [
    *each("Host twice", (HOST_LINE * 2, HOST_LINE + b"host: $H\r\n",
                         HOST_LINE + b"Host: elsewhere.example\r\n", HOST_LINE + b"Host:\r\n",
                         b"Host: elsewhere.example\r\n" + HOST_LINE, b"", HOST_LINE * 3),
          SEND.replace(HOST_LINE, b"@") + ONE, [400], CLOSES),
    *each("Host with blanks", (b"Host:$H", b"Host:  \t$H", b"Host: $H \t ", b"HOST: $H",
                               b"Host: $H:443"),
          SEND.replace(HOST_LINE, b"@\r\n") + ONE, [200], OPEN),
    *each("another Host",
          (b"", b" ", b"elsewhere.example", b"x@$H", b"$H, $H", b"$H,elsewhere.example", b"$H $H",
           b"$H\telsewhere.example", b"$H/", b"$H/x", b"$H?", b"$H#", b"$H:", b"$H:x", b"$H:-1",
           b"$H:65536", b"$H:80:80", b"$H.evil.example", b"http://$H", b"[$H]", b"%00$H",
           b"cell1_.unit1.example", b"\xff$H", b"$H\\", b"..", b"*.unit1.example", b"@$H"),
          SEND.replace(HOST_LINE, b"Host: @\r\n") + ONE, [400], OPEN),
    *each("a bad name of Host", (b"Host : $H", b" Host: $H", b"Host\0: $H", b"Host $H",
                                              b"Host: $H\0", b"Host: $H\nX: 1", b"Host: \r\n $H",
                                              b"Host: $H\rX: 1", b"X: 1\r\n Host: $H"),
          SEND.replace(HOST_LINE, b"@\r\n") + ONE, [400], CLOSES),
    Row("Host with an underscore", SEND.replace(b"Host:", b"Host_:") + ONE, [400],
        CLOSES),
    Row("X-Forwarded-Host is another header", SEND + b"X-Forwarded-Host: elsewhere.example\r\n"
        + ONE, [200], OPEN, (b"1",)),
]  # fmt: skip

CONNECTIONS = [
    *each("Connection that closes",
          (b"close", b"Close", b"CLOSE", b"close, x", b"x, close", b"x,close", b"keep-alive, close",
           b"close, keep-alive", b",close", b"close,", b"x,\tclose\t,y", b"close\r\nConnection: x",
           b"keep-alive\r\nConnection: close", b"upgrade, close"),
          SEND + b"Connection: @\r\n" + ONE, [200], CLOSES),
    *each("Connection that does not close",
          (b"keep-alive", b"", b",", b"x", b"xclose", b"closed", b"close;x", b"close x", b'"close"',
           b"x close", b"upgrade", b"TE", b"Content-Length", b"Host", b"Authorization",
           b"Transfer-Encoding, Content-Length", b"keep-alive\r\nProxy-Connection: close",
           b"keep-alive\r\nConnection_: close"),
          SEND + b"Connection: @\r\n" + ONE, [200], OPEN),
    Row("HTTP/1.0", SEND.replace(b"1.1", b"1.0", 1) + ONE, [200], CLOSES, (b"1",)),
    Row("HTTP/1.0 with keep-alive", SEND.replace(b"1.1", b"1.0", 1)
        + b"Connection: keep-alive\r\n" + ONE, [200], CLOSES, (b"1",)),
    Row("HTTP/1.0 without a length", SEND.replace(b"1.1", b"1.0", 1) + b"\r\n1", [400], CLOSES),
    Row("HTTP/1.0 without Host", SEND.replace(b"1.1", b"1.0", 1).replace(HOST_LINE, b"") + ONE,
        [400], CLOSES),
    Row("HTTP/1.0 with Host twice", SEND.replace(b"1.1", b"1.0", 1) + HOST_LINE + ONE, [400],
        CLOSES),
    Row("HTTP/1.0, then HTTP/1.1", SEND.replace(b"1.1", b"1.0", 1) + ONE + SMUGGLED, [200], CLOSES,
        (b"1",)),
    Row("close with a request behind", SEND + b"Connection: close\r\n" + ONE + SMUGGLED, [200],
        CLOSES, (b"1",)),
]  # fmt: skip

EXPECTATIONS = [
    *each("100-continue with a body behind", (b"100-continue", b"100-Continue", b" 100-CONTINUE\t"),
          SEND + b"Expect: @\r\n" + ONE, [200], OPEN),
    *each("another expectation",
          (b"", b"x", b"100", b"100-continue, x", b"x, 100-continue", b"100-continue;x", b"100-",
           b"100-continue x", b"x100-continue", b"100-continue, 100-continue", b"200-ok",
           b"100-continue\r\nExpect: 100-continue", b"100-continue\r\nExpect: x"),
          SEND + b"Expect: @\r\n" + ONE, [417], CLOSES),
    Row("100-continue and chunks", SEND + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n"
        b"\r\n1\r\n1\r\n0\r\n\r\n", [200], OPEN, (b"1",)),
    Row("100-continue without a body", b"GET / HTTP/1.1\r\n" + HOST_LINE
        + b"Expect: 100-continue\r\n\r\n", [404], OPEN),
    Row("100-continue with a length of 0", SEND + b"Expect: 100-continue\r\nContent-Length: 0\r\n"
        b"\r\n", [400], OPEN),
    Row("another expectation without a body", b"GET / HTTP/1.1\r\n" + HOST_LINE
        + b"Expect: x\r\n\r\n", [417], CLOSES),
    Row("100-continue in HTTP/1.0", SEND.replace(b"1.1", b"1.0", 1) + b"Expect: 100-continue\r\n"
        + ONE, [200], CLOSES, (b"1",)),
    Row("another expectation in HTTP/1.0", SEND.replace(b"1.1", b"1.0", 1) + b"Expect: x\r\n" + ONE,
        [200], CLOSES, (b"1",)),
    Row("100-continue, refused, the body behind", NOWHERE
        + b"Expect: 100-continue\r\n" + ONE, [404], CLOSES),
    Row("100-continue, refused, a request behind", NOWHERE
        + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED, [404],
        CLOSES),
    Row("100-continue, refused, chunks behind", NOWHERE
        + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [404], CLOSES),
    Row("100-continue with a bad token", SEND.replace(b"good", b"bad") + b"Expect: 100-continue\r\n"
        + ONE, [401], CLOSES),
    Row("100-continue above the limit", SEND + b"Expect: 100-continue\r\nContent-Length: 1001\r\n"
        b"\r\n", [413], CLOSES),
]  # fmt: skip

UNWANTED_BODIES = [
    *each("a body that is not wanted", (b"GET", b"HEAD", b"DELETE", b"POST", b"QUERY"),
          b"@ /nowhere HTTP/1.1\r\n" + HOST_LINE + COVERED, [404], OPEN),
    *each("chunks that are not wanted", (b"GET", b"POST"),
          b"@ /nowhere HTTP/1.1\r\n" + HOST_LINE + b"Transfer-Encoding: chunked\r\n\r\n"
          + COVERED_CHUNK, [404], OPEN),
    *each("bad chunks that are not wanted", (b"x\r\n", b"1\r\n12\r\n", b"1\nx\r\n0\r\n\r\n",
                                                  b"0\r\nno colon\r\n\r\n", b"1;" + b"x" * 300,
                                                  b"1\r\n1\r\n-1\r\n"),
          NOWHERE + b"Transfer-Encoding: chunked\r\n\r\n@", [404],
          CLOSES),
    *each("bad chunks with a bad token", (b"x\r\n", b"1\r\n12\r\n", b"1\nx\r\n0\r\n\r\n",
                                                     b"0\r\nno colon\r\n\r\n", b"1;" + b"x" * 300),
          CHUNKED.replace(b"good", b"bad") + b"@", [401], CLOSES),
    Row("a body with a bad token", SEND.replace(b"good", b"bad") + COVERED, [401], OPEN),
    Row("chunks with a bad token", CHUNKED.replace(b"good", b"bad") + b"1\r\n1\r\n0\r\n\r\n", [401],
        OPEN),
    Row("less of an unwanted body than its length", NOWHERE + b"Content-Length: 900\r\n\r\n1",
        [404], WAITS),
    Row("an unwanted body of 72 KB in chunks", NOWHERE + b"Transfer-Encoding: chunked\r\n\r\n"
        + (b"2000\r\n" + b"x" * 8192 + b"\r\n") * 9, [404], CLOSES),
]  # fmt: skip

UPGRADES = [
    Row("a handshake", UPGRADE + b"\r\n", [101], CLOSES),
    Row("a handshake and a request behind", UPGRADE + b"\r\n" + SMUGGLED, [101], CLOSES),
    Row("a handshake with a length of 0", UPGRADE + b"Content-Length: 0\r\n\r\n", [101], CLOSES),
    Row("a handshake that closes", UPGRADE + b"Connection: close\r\n\r\n", [101], CLOSES),
    Row("a handshake with 100-continue", UPGRADE + b"Expect: 100-continue\r\n\r\n", [101], CLOSES),
    Row("a request, then a handshake", SEND + ONE + UPGRADE + b"\r\n" + SMUGGLED, [200, 101],
        CLOSES, (b"1",)),
    Row("a handshake with a body", UPGRADE + b"Content-Length: 1\r\n\r\n1", [400], OPEN),
    Row("a handshake with a request as its body", UPGRADE + COVERED, [400], OPEN),
    Row("a handshake with chunks", UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n"
        b"\r\n", [400], OPEN),
    Row("a handshake with bad chunks", UPGRADE + b"Transfer-Encoding: chunked\r\n\r\nx"
        b"\r\n", [400], CLOSES),
    Row("a handshake with a length and chunks", UPGRADE + b"Content-Length: 5\r\nTransfer-Encoding:"
        b" chunked\r\n\r\n0\r\n\r\n", [400], CLOSES),
    Row("a handshake with two lengths", UPGRADE + b"Content-Length: 0\r\nContent-Length: 1\r\n\r\n",
        [400], CLOSES),
    Row("a handshake with two keys", UPGRADE + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"\r\n", [400], OPEN),
    Row("a handshake in HTTP/1.0", UPGRADE.replace(b"1.1", b"1.0", 1) + b"\r\n" + SMUGGLED, [400],
        CLOSES),
    Row("a handshake of another version", UPGRADE.replace(b": 13", b": 8") + b"\r\n", [426], OPEN),
    Row("a refused handshake and a send behind", UPGRADE.replace(b": 13", b": 8") + b"\r\n" + SEND
        + ONE, [426, 200], OPEN, (b"1",)),
    Row("a refused handshake with a body and a send behind", UPGRADE.replace(b": 13", b": 8")
        + COVERED + SEND + ONE, [426, 200],
        OPEN, (b"1",)),
    Row("a handshake at another path", UPGRADE.replace(WEBSOCKET_PATH.encode(), b"/x")
        + b"\r\n", [404], OPEN),
    Row("a handshake by POST", UPGRADE.replace(b"GET", b"POST") + b"\r\n", [405], OPEN),
    Row("a send that offers an upgrade", SEND + b"Upgrade: websocket\r\nConnection: upgrade\r\n"
        + ONE, [200], OPEN, (b"1",)),
    Row("a send that offers HTTP/2", SEND + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c"
        b"\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n" + ONE, [200], OPEN, (b"1",)),
    Row("chunks that offer an upgrade", SEND + b"Upgrade: websocket\r\nConnection: upgrade\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n", [200], OPEN, (b"1",)),
    Row("a send without a body that offers an upgrade", SEND + b"Upgrade: websocket\r\nConnection:"
        b" upgrade\r\n\r\n", [400], OPEN),
]  # fmt: skip

PIPELINES = [
    Row("three requests", SEND + ONE + OPTIONS + b"\r\n" + SEND + ONE, [200, 200, 200], OPEN,
        (b"1", b"1")),
    Row("a bad request behind a good one", SEND + ONE + SEND + b"X : 1\r\n" + ONE, [200, 400],
        CLOSES, (b"1",)),
    Row("a byte too many behind a body", SEND + ONE + b"2", [200, 405], CLOSES, (b"1",)),
    Row("a line end behind a body", SEND + ONE + b"\r\n", [200], OPEN, (b"1",)),
    Row("a body that is one byte longer than its length", SEND + b"Content-Length: 1\r\n\r\n12",
        [200, 405], CLOSES, (b"1",)),
    Row("a body that is not JSON, then a good one", SEND + b"Content-Length: 1\r\n\r\nx" + SEND
        + ONE, [400, 200], OPEN, (b"1",)),
    Row("a bad token, then a good one", SEND.replace(b"good", b"bad") + ONE + SEND + ONE,
        [401, 200], OPEN, (b"1",)),
    Row("chunks, then a length", CHUNKED + b"1\r\n1\r\n0\r\n\r\n" + SEND + ONE, [200, 200], OPEN,
        (b"1", b"1")),
    Row("HEAD, then a send", b"HEAD /nowhere HTTP/1.1\r\n" + HOST_LINE + b"\r\n" + SEND + ONE,
        [404, 200], OPEN, (b"1",)),
]  # fmt: skip

ROWS = [
    *LENGTHS, *CODINGS, *CHUNKS, *TRAILERS, *LINES, *FIRST_LINES, *TARGETS, *HOSTS, *CONNECTIONS,
    *EXPECTATIONS, *UNWANTED_BODIES, *UPGRADES, *PIPELINES,
]  # fmt: skip
ROWS = [row._replace(data=fill(row.data)) for row in ROWS]
