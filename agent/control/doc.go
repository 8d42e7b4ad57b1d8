// Package control is how commands speak with the running agent: HTTP and JSON
// over a Unix socket, so that it can be looked into with curl. Who is at the other
// end is asked of the kernel: root, the agent's own user, and whom Access names may
// do everything; one group may be let look only. Every change is logged with the
// user, uid and process that asked for it.
//
//	qrbd status ──► Client ── unix socket ──► Server ──► Node (the agent)
//
//	GET  /v1/status                       Node.Status
//	GET  /v1/volumes/{name}/explain       Node.Explain
//	POST /v1/volumes/{name}/create        CreateRequest
//	POST /v1/volumes/{name}/promote       PromoteRequest
//	POST /v1/volumes/{name}/demote        DemoteRequest
//	POST /v1/volumes/{name}/switchover    SwitchoverRequest
//	POST /v1/volumes/{name}/connect       ConnectRequest
//	POST /v1/volumes/{name}/disconnect    DisconnectRequest
//	POST /v1/volumes/{name}/invalidate
//	POST /v1/volumes/{name}/outdate
//	POST /v1/volumes/{name}/replace-disk
//	POST /v1/volumes/{name}/verify        VerifyRequest; answers with Progress lines
//	POST /v1/volumes/{name}/failover-pause FailoverPauseRequest
//	POST /v1/volumes/{name}/failover-test FailoverTestRequest; answers with Progress lines
//	POST /v1/volumes/{name}/wait          WaitRequest; answers with Progress lines
//	GET  /v1/reach                        Node.Reach
//	GET  /v1/events?since=BOOT:N&follow=1 EventLine lines; the header says where they begin
//
// Answers are JSON. A refusal has a status of 4xx or 5xx and the body
// {"error":{"code":"…","text":"…"}}, where code is the text of a protocol.Code;
// the Client gives back the same *volume.Error that the agent had. A streamed
// answer is one JSON object a line and ends with one that has "done" or
// "error".
//
// Invariants: a route that is not listed as readable needs all rights; every call has an end (callMax, or what the request asks for);
// a request body has at most bodyMax bytes; the event ring holds at most
// ringMax events, and a reader that is too slow sees a gap, never waits for it
// and never holds the agent back.
//
// Goroutines: http.Server's own, which end with Server.Close; the Client has
// none of its own.
package control
