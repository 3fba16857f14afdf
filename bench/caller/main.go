// caller makes gRPC calls on a unix socket as the kubelet does, a Go program too, and says how long each took.
//
// Each line of its input is a method and its request, serialized, in base64. It reads them all, makes the calls one
// after the other over one connection, then answers with a line each: the microseconds, the code and the message.
package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// patience is the kubelet's deadline for a call.
const patience = 2 * time.Minute

// raw sends and receives bytes as they are: who calls us has serialized them.
type raw struct{}

func (raw) Marshal(message any) ([]byte, error)      { return *message.(*[]byte), nil }
func (raw) Unmarshal(data []byte, message any) error { *message.(*[]byte) = data; return nil }
func (raw) Name() string                             { return "proto" }

type call struct {
	method  string
	request []byte
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: caller SOCKET < calls")
	}
	connection, err := grpc.NewClient("unix://"+os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		log.Fatal(err)
	}
	connection.Connect()
	calls := read()
	answers := bufio.NewWriter(os.Stdout)
	for _, each := range calls {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		var response []byte
		started := time.Now()
		err := connection.Invoke(ctx, each.method, &each.request, &response, grpc.WaitForReady(true))
		took := time.Since(started)
		cancel()
		fmt.Fprintf(answers, "%d %s %s\n", took.Microseconds(), status.Code(err), strings.ReplaceAll(status.Convert(err).Message(), "\n", " "))
	}
	if err := answers.Flush(); err != nil {
		log.Fatal(err)
	}
}

func read() []call {
	var calls []call
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		method, encoded, _ := strings.Cut(lines.Text(), " ")
		request, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			log.Fatal(err)
		}
		calls = append(calls, call{method, request})
	}
	if err := lines.Err(); err != nil {
		log.Fatal(err)
	}
	return calls
}
