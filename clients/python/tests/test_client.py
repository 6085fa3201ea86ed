"""What the client does by itself, against a server that fails on purpose."""

from __future__ import annotations

import unittest
from concurrent import futures
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

import kage
from kage.v1 import diff_pb2
from kage.v1 import task_service_pb2 as wire
from kage.v1 import task_service_pb2_grpc


def details(code: grpc.StatusCode, *facts: Any) -> tuple[tuple[str, bytes]]:
    """The metadata in which a coordinator says why a call failed."""
    status = status_pb2.Status(code=code.value[0])
    for fact in facts:
        packed = any_pb2.Any()
        packed.Pack(fact)
        status.details.append(packed)
    return (("grpc-status-details-bin", status.SerializeToString()),)


class Flaky(task_service_pb2_grpc.TaskServiceServicer):
    """Fails as often as it is told, then answers."""

    def __init__(self) -> None:
        self.failures: list[tuple[grpc.StatusCode, tuple[tuple[str, bytes], ...]]] = []
        self.requests: list[Any] = []

    def _fail(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        if self.failures:
            code, metadata = self.failures.pop(0)
            context.set_trailing_metadata(metadata)
            context.abort(code, "words for people")

    def CreateTask(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._fail(request, context)
        return wire.CreateTaskResponse(task=kage.Task(id="a"))

    def WatchTask(self, request: Any, context: grpc.ServicerContext) -> Any:
        yield wire.WatchTaskResponse(cursor="1", task=kage.Task(id="a"))
        # What a newer coordinator may say.
        yield wire.WatchTaskResponse(cursor="2")
        self._fail(request, context)

    def GetDiff(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._fail(request, context)
        yield wire.GetDiffResponse(header=diff_pb2.DiffHeader(session="one"))
        for name in [b"a", b"b"]:
            yield wire.GetDiffResponse(file=kage.FileDiff(path=name, patch_size=4))
            yield wire.GetDiffResponse(patch=b"+" + name)
            # What a newer coordinator may say.
            yield wire.GetDiffResponse()
            yield wire.GetDiffResponse(patch=b"!\n")
        if request.session != "broken":
            yield wire.GetDiffResponse(totals=diff_pb2.DiffTotals(files=2))


class ClientOfAFlakyServer(unittest.TestCase):
    def setUp(self) -> None:
        self.flaky = Flaky()
        server = grpc.server(futures.ThreadPoolExecutor(2))
        task_service_pb2_grpc.add_TaskServiceServicer_to_server(self.flaky, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self.addCleanup(lambda: server.stop(None).wait())
        self.client = kage.connect(f"http://127.0.0.1:{port}", "token")
        self.addCleanup(self.client.close)

    def will_fail(self, code: grpc.StatusCode, *facts: Any) -> None:
        self.flaky.failures.append((code, details(code, *facts) if facts else ()))

    def test_submit_tries_once_more_under_the_same_request_id(self) -> None:
        self.will_fail(grpc.StatusCode.UNAVAILABLE)
        self.assertEqual(self.client.submit(kage.TaskSpec()).id, "a")
        first, second = self.flaky.requests
        self.assertTrue(first.request_id)
        self.assertEqual(first, second)
        self.client.submit(kage.TaskSpec())
        self.assertNotEqual(self.flaky.requests[-1].request_id, first.request_id)

    def test_submit_does_not_try_a_third_time_or_what_is_wrong(self) -> None:
        for code, calls in [(grpc.StatusCode.UNAVAILABLE, 2), (grpc.StatusCode.INVALID_ARGUMENT, 1)]:
            self.flaky.requests.clear()
            self.flaky.failures = [(code, ())] * calls
            with self.assertRaises(kage.KageError) as caught:
                self.client.submit(kage.TaskSpec())
            self.assertEqual((caught.exception.reason, len(self.flaky.requests)), (code.name, calls))

    def test_a_watch_resumes_from_its_cursor(self) -> None:
        self.will_fail(grpc.StatusCode.UNAVAILABLE)
        watch = self.client.watch("a")
        self.assertEqual(len([*watch]), 2)
        self.assertEqual([request.cursor for request in self.flaky.requests], ["", "2"])
        self.assertEqual(watch.cursor, "2")

    def test_a_watch_does_not_resume_after_other_errors_or_without_patience(self) -> None:
        for code, patience in [(grpc.StatusCode.NOT_FOUND, 60), (grpc.StatusCode.UNAVAILABLE, 0)]:
            self.flaky.failures = [(code, ())]
            with self.assertRaises(kage.KageError) as caught:
                [*self.client.watch("a", patience=patience)]
            self.assertEqual(caught.exception.reason, code.name)

    def test_a_difference_is_put_together_and_a_broken_one_is_an_error(self) -> None:
        files = [(file.path, patch) for file, patch in self.client.diff("a", before="1", after="head", paths=[b"x"])]
        self.assertEqual(files, [(b"a", b"+a!\n"), (b"b", b"+b!\n")])
        (request,) = self.flaky.requests
        self.assertEqual((getattr(request, "from"), request.to, [*request.paths]), ("1", "head", [b"x"]))
        with self.assertRaises(kage.KageError) as caught:
            [*self.client.diff("a", "broken")]
        self.assertEqual(caught.exception.reason, "UNAVAILABLE")
        self.will_fail(grpc.StatusCode.NOT_FOUND)
        with self.assertRaises(kage.KageError) as caught:
            [*self.client.diff("a")]
        self.assertEqual(caught.exception.reason, "NOT_FOUND")

    def test_details_are_read(self) -> None:
        info = error_details_pb2.ErrorInfo(reason="SOMETHING_NEW", domain="kage.v1")
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field="spec.prompt", description="is empty")
        retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
        self.will_fail(grpc.StatusCode.INVALID_ARGUMENT, info, bad, retry)
        with self.assertRaises(kage.KageError) as caught:
            self.client.submit(kage.TaskSpec())
        error = caught.exception
        self.assertEqual(error.reason, "SOMETHING_NEW")
        self.assertEqual(error.violations, (kage.Violation("spec.prompt", "is empty"),))
        self.assertEqual(error.retry_after, 1.5)
        self.assertEqual(str(error), "words for people")

    def test_reasons_of_other_domains_are_not_taken(self) -> None:
        info = error_details_pb2.ErrorInfo(reason="THEIRS", domain="example.org")
        self.will_fail(grpc.StatusCode.NOT_FOUND, info)
        with self.assertRaises(kage.KageError) as caught:
            self.client.submit(kage.TaskSpec())
        self.assertEqual(caught.exception.reason, "NOT_FOUND")


class Connecting(unittest.TestCase):
    def test_an_address_that_cannot_be_one_is_refused(self) -> None:
        for url in ["", "127.0.0.1:7443", "ftp://127.0.0.1:7443", "http://127.0.0.1", "https://127.0.0.1"]:
            with self.assertRaises(ValueError, msg=url):
                kage.connect(url, "token")

    def test_a_ca_is_for_https_and_has_to_be_there(self) -> None:
        with self.assertRaises(ValueError):
            kage.connect("http://127.0.0.1:7443", "token", ca_file="ca.pem")
        with self.assertRaises(FileNotFoundError):
            kage.connect("https://127.0.0.1:7443", "token", ca_file="/nowhere/ca.pem")

    def test_nobody_there_is_unavailable(self) -> None:
        with kage.connect("http://127.0.0.1:1", "token") as client:
            with self.assertRaises(kage.KageError) as caught:
                client.agents()
        self.assertEqual(caught.exception.reason, "UNAVAILABLE")
