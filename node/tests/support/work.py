"""What a Python program uses of its system: each function raises where something is refused."""
import asyncio, ctypes, hashlib, mmap, multiprocessing, os, resource, select, signal, socket, sqlite3, ssl
import subprocess, sys, tempfile, threading, time, zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import shared_memory


def square(number):
    return number * number


def threads():
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(square, range(100))) == [n * n for n in range(100)]
    lock, count = threading.Lock(), [0]

    def add():
        for _ in range(1000):
            with lock:
                count[0] += 1

    workers = [threading.Thread(target=add) for _ in range(8)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    assert count == [8000]


def processes():
    assert subprocess.run(["sh", "-c", "cat; exit 3"], input=b"hi", capture_output=True).stdout == b"hi"
    assert os.waitstatus_to_exitcode(os.system("exit 5")) == 5
    assert os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1] == 0
    for method in ["fork", "spawn", "forkserver"]:
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            assert list(pool.map(square, range(10))) == [n * n for n in range(10)], method
    semaphore = multiprocessing.Semaphore(2)
    assert semaphore.acquire() and semaphore.acquire() and not semaphore.acquire(block=False)
    block = shared_memory.SharedMemory(create=True, size=1 << 20)
    block.buf[:5] = b"hello"
    same = shared_memory.SharedMemory(name=block.name)
    assert bytes(same.buf[:5]) == b"hello"
    same.close()
    block.close()
    block.unlink()


async def echo(reader, writer):
    writer.write(await reader.readexactly(5))
    writer.close()


async def ask(opened):
    reader, writer = await opened
    writer.write(b"hello")
    answer = await reader.read()
    writer.close()
    return answer


async def talk():
    server = await asyncio.start_server(echo, "127.0.0.1", 80)
    local = await asyncio.start_unix_server(echo, f"/tmp/socket{os.getuid()}")
    answers = [ask(asyncio.open_connection("127.0.0.1", 80)) for _ in range(50)]
    answers += [ask(asyncio.open_unix_connection(f"/tmp/socket{os.getuid()}"))]
    assert set(await asyncio.gather(*answers)) == {b"hello"}
    child = await asyncio.create_subprocess_exec("echo", "child", stdout=subprocess.PIPE)
    assert (await child.communicate())[0] == b"child\n"
    server.close()
    local.close()


def sockets():
    asyncio.run(talk())
    one, other = socket.socketpair()
    with tempfile.TemporaryFile() as file:
        socket.send_fds(one, [b"x"], [file.fileno()])
    assert len(socket.recv_fds(other, 1, 1)[1]) == 1
    assert socket.getaddrinfo("localhost", 80)
    assert any(name == "lo" for _, name in socket.if_nameindex())
    # Ping without a capability: the group range that the container's parameters allow (ICMP: type 8 asks, 0 answers).
    ping = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    ping.settimeout(5)
    ping.sendto(b"\x08\0\0\0\0\0\0\x01ping", ("127.0.0.1", 0))
    answer = ping.recv(100)
    assert answer[:1] == b"\0" and answer.endswith(b"ping")
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def secure():
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        context.wrap_bio(incoming, outgoing, server_hostname="wherry.example").do_handshake()
    except ssl.SSLWantReadError:
        pass
    # The beginning of a ClientHello (RFC 8446 §5.1).
    assert outgoing.read()[:1] == b"\x16"
    assert hashlib.scrypt(b"password", salt=b"salt", n=1024, r=8, p=1) and os.urandom(8)


def files():
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "file")
        with open(path, "wb") as file:
            file.write(b"x" * 10000)
            os.fsync(file.fileno())
            os.posix_fallocate(file.fileno(), 0, 20000)
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            view[:4] = b"mmap"
            view.flush()
        os.link(path, path + "2")
        os.symlink(path, path + "3")
        os.chmod(path, 0o4711)
        os.utime(path, (1, 2))
        os.setxattr(path, "user.key", b"value")
        os.rename(path + "2", path + "4")
        assert {entry.name for entry in os.scandir(directory)} == {"file", "file3", "file4"}
        database = sqlite3.connect(os.path.join(directory, "db"))
        database.execute("pragma journal_mode=wal")
        database.execute("create table t (x)")
        database.execute("insert into t values (7)")
        database.commit()
        assert database.execute("select x from t").fetchone() == (7,)
        database.close()


def kernel():
    ticks = []
    signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    signal.pause()
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert ticks and len(os.sched_getaffinity(0)) > 0 and resource.getrusage(resource.RUSAGE_SELF)
    poll = select.epoll()
    poll.register(os.eventfd(1), select.EPOLLIN)
    poll.register(os.pidfd_open(os.getpid()), select.EPOLLIN)
    assert poll.poll(1)
    memory = os.memfd_create("memory")
    os.write(memory, b"text")
    os.sendfile(os.open(f"/tmp/copy{os.getuid()}", os.O_CREAT | os.O_WRONLY), memory, 0, 4)
    os.splice(memory, os.pipe()[1], 4, offset_src=0)
    pages = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    pages.write(b"\xc3")
    numbers = (ctypes.c_int * 3)(3, 1, 2)
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
    ctypes.CDLL(None).qsort(numbers, 3, 4, compare(lambda a, b: a[0] - b[0]))
    assert list(numbers) == [1, 2, 3]
    os.nice(1)
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + 1)
    assert os.uname().nodename and time.clock_gettime(time.CLOCK_MONOTONIC_RAW) and os.getloadavg()
    assert zlib.crc32(b"x") and os.cpu_count() and os.getgrouplist("root", 0)


if __name__ == "__main__":
    for part in [threads, processes, sockets, secure, files, kernel]:
        part()
        print(part.__name__, flush=True)
    print("done by", os.getuid())
