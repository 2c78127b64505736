"""Posts with http.client on connections that it keeps, until standard input ends: of each
answer it prints the number of its socket and the process that it came from, and at the end
how many sockets are still open. What is lost it does not send again."""

import http.client
import random
import ssl
import sys
import threading

port, name, connections = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
ended = threading.Event()
printing = threading.Lock()
sockets = 0
kept = 0


def say(line):
    with printing:
        print(line, flush=True)


class Connection(http.client.HTTPSConnection):
    """Numbers the sockets; http.client opens another one when the server has closed."""

    def connect(self):
        global sockets
        http.client.HTTPConnection.connect(self)
        self.sock = context.wrap_socket(self.sock, server_hostname=name)
        with printing:
            self.number, sockets = sockets, sockets + 1


def post():
    global kept
    conn = Connection("127.0.0.1", port, timeout=30)
    requests = 0
    while not ended.is_set():
        requests += 1
        body = str(requests).ljust(random.randrange(20000), ".")
        try:
            conn.request("POST", "/echo", body)
            answer = conn.getresponse()
            got = answer.read().decode()
            if answer.status != 200 or got != body:
                raise ValueError("answered %d %.60s" % (answer.status, got))
        except (OSError, http.client.HTTPException, ValueError) as why:
            say("lost: %r" % why)
            conn.close()
        else:
            # The sockets of an answer that says Connection: close is closed by now.
            cipher = conn.sock.cipher() if conn.sock else ("closed", "closed")
            say("ok %d %s %s %s" % (conn.number, answer.getheader("X-Pid"), cipher[1], cipher[0]))
        ended.wait(random.uniform(0, 0.02))
    with printing:
        kept += conn.sock is not None
    conn.close()


context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.set_alpn_protocols(["http/1.1"])
threads = [threading.Thread(target=post) for _ in range(connections)]
for t in threads:
    t.start()
sys.stdin.read()
ended.set()
for t in threads:
    t.join()
say("kept %d" % kept)
