package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/qrbd/qrbd/protocol/session"
)

const (
	echoBytes  = 4096 // of a question, one at a time
	echoAnswer = 16   // bytes; an acknowledgement is about as long
	echoWarm   = 500  // questions that are not counted
	echoAsked  = 5000 // that are

	// echoSlack is what a replicated write may take more than nbdkit's hop and a bare echo together.
	echoSlack = 1.3
)

// echoFigures is what a transport does by itself between two processes: 4 KiB there, a few bytes back.
type echoFigures struct {
	Transport string    `json:"transport"`
	P50us     []float64 `json:"p50_us"` // one for each round
}

// measureEcho runs the echo as often as there are rounds.
func measureEcho(ctx context.Context, s site, rounds int) (*echoFigures, error) {
	f := &echoFigures{Transport: s.transport}
	for round := range rounds {
		us, err := measureBare(ctx, s.path(strconv.Itoa(round)), s.transport, echoAsked, [2]string{echoItem, echoItem})
		if err != nil {
			return nil, fmt.Errorf("echo: %w", err)
		}
		f.P50us = append(f.P50us, us)
	}
	return f, nil
}

// answer answers every question, until it is ended.
func answer(s *session.Stream) error {
	question, reply := make([]byte, echoBytes), make([]byte, echoAnswer)
	for i := 0; ; i++ {
		if n, err := io.ReadFull(s, question); err != nil {
			return fmt.Errorf("question %d, %d bytes of it: %w", i, n, err)
		}
		if _, err := s.Write(reply); err != nil {
			return fmt.Errorf("answering question %d: %w", i, err)
		}
	}
}

// ask asks n questions, one at a time, and returns the median time of one in microseconds.
func ask(s *session.Stream, n int) (float64, error) {
	question, reply := make([]byte, echoBytes), make([]byte, echoAnswer)
	var times []time.Duration
	for i := range echoWarm + n {
		begin := time.Now()
		if _, err := s.Write(question); err != nil {
			return 0, fmt.Errorf("asking question %d: %w", i, err)
		}
		if n, err := io.ReadFull(s, reply); err != nil {
			return 0, fmt.Errorf("answer to question %d, %d bytes of it: %w", i, n, err)
		}
		if i >= echoWarm {
			times = append(times, time.Since(begin))
		}
	}
	slices.Sort(times)
	return float64(times[len(times)/2].Nanoseconds()) / 1000, nil
}
