"""Publishes a clock and a tone by WHIP with aiortc, until SIGTERM. Prints `live` when the connection stands.

Usage: aiortc_publish.py URL H264|VP8

The picture is the machine-readable clock (the rule is in ingest/publisher/src/clock.rs) above something that moves.
Nothing but the server is contacted: no STUN, loopback candidates only.
"""

import asyncio
import fractions
import math
import signal
import struct
import sys
import time
import urllib.parse
import urllib.request

import aioice.ice
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from av import AudioFrame, VideoFrame

WIDTH, HEIGHT, FRAMES_PER_SECOND = 640, 360, 15
STRIP = max(16, HEIGHT // 12)
WHITE, BLACK = 235, 16
SAMPLES = 960

# The tests' server is on this machine, which may have no other address.
aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]


def strip_row(now_ms):
    time_bytes = (now_ms % 2**40).to_bytes(5, "big")
    checksum = 0
    for byte in time_bytes:
        checksum ^= byte
    bits = int.from_bytes(time_bytes + bytes([checksum]), "big")
    row = bytearray()
    for column in range(52):
        is_white = column in (0, 51) or (2 <= column < 50 and bits >> (49 - column) & 1)
        count = (column + 1) * WIDTH // 52 - column * WIDTH // 52
        row += bytes([WHITE if is_white else BLACK]) * count
    return bytes(row)


class Clock(MediaStreamTrack):
    kind = "video"

    def __init__(self):
        super().__init__()
        self.number = 0
        self.started = None

    async def recv(self):
        self.started = self.started or time.time()
        await asyncio.sleep(max(0, self.started + self.number / FRAMES_PER_SECOND - time.time()))
        at = self.number * 8 % (WIDTH - 80)
        body = bytes([90]) * at + bytes([170]) * 80 + bytes([90]) * (WIDTH - 80 - at)
        luma = strip_row(int(time.time() * 1000)) * STRIP + body * (HEIGHT - STRIP)
        frame = VideoFrame(WIDTH, HEIGHT, "yuv420p")
        for plane, data in zip(frame.planes, (luma, bytes([128]) * (WIDTH * HEIGHT // 4), bytes([128]) * (WIDTH * HEIGHT // 4))):
            width, height = (WIDTH, HEIGHT) if plane.width == WIDTH else (WIDTH // 2, HEIGHT // 2)
            padding = bytes(plane.line_size - width)
            plane.update(b"".join(data[y * width : (y + 1) * width] + padding for y in range(height)))
        frame.pts = self.number * 90_000 // FRAMES_PER_SECOND
        frame.time_base = fractions.Fraction(1, 90_000)
        self.number += 1
        return frame


class Tone(MediaStreamTrack):
    kind = "audio"

    def __init__(self):
        super().__init__()
        self.position = 0
        self.started = None

    async def recv(self):
        self.started = self.started or time.time()
        await asyncio.sleep(max(0, self.started + self.position / 48_000 - time.time()))
        step = 2 * math.pi * 1000 / 48_000
        samples = [int(12_000 * math.sin(step * (self.position + i))) for i in range(SAMPLES)]
        frame = AudioFrame(format="s16", layout="mono", samples=SAMPLES)
        frame.planes[0].update(struct.pack(f"<{SAMPLES}h", *samples))
        frame.sample_rate = 48_000
        frame.pts = self.position
        frame.time_base = fractions.Fraction(1, 48_000)
        self.position += SAMPLES
        return frame


def call(method, url, body=None):
    request = urllib.request.Request(url, data=body, method=method, headers={"Content-Type": "application/sdp"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.headers.get("Location"), response.read().decode()


async def main(url, codec):
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))

    @connection.on("connectionstatechange")
    def changed():
        print("live" if connection.connectionState == "connected" else connection.connectionState, flush=True)

    connection.addTransceiver(Tone(), direction="sendonly")
    video = connection.addTransceiver(Clock(), direction="sendonly")
    known = RTCRtpSender.getCapabilities("video").codecs
    video.setCodecPreferences([c for c in known if c.mimeType.lower() in (f"video/{codec}".lower(), "video/rtx")])
    await connection.setLocalDescription(await connection.createOffer())
    offer = connection.localDescription.sdp.encode()
    location, answer = await asyncio.to_thread(call, "POST", url, offer)
    await connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    await stop.wait()
    await asyncio.to_thread(call, "DELETE", urllib.parse.urljoin(url, location))
    await connection.close()


asyncio.run(main(*sys.argv[1:]))
