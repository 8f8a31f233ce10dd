// A relay by io.Copy, which splices where Go thinks that it can.
//
//	relay LISTENER_FD BACKEND      relay each client to that address
//	relay LISTENER_FD file:PATH    send each client that file
//
// It does so until it is killed. Go sets TCP_NODELAY itself.
package main

import (
	"io"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
)

// What a TCP and a unix connection have in common, and net.Conn lacks.
type stream interface {
	net.Conn
	CloseWrite() error
}

func pump(to, from stream, done chan<- struct{}) {
	io.Copy(to, from)
	to.CloseWrite()
	done <- struct{}{}
}

func relay(client net.Conn, network, address string) {
	defer client.Close()
	backend, err := net.Dial(network, address)
	if err != nil {
		log.Print(err)
		return
	}
	defer backend.Close()
	done := make(chan struct{}, 2)
	go pump(backend.(stream), client.(stream), done)
	pump(client.(stream), backend.(stream), done)
	<-done
	<-done
}

func sendFile(client net.Conn, path string) {
	defer client.Close()
	file, err := os.Open(path)
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	io.Copy(client, file)
}

func handler(target string) func(net.Conn) {
	if path := strings.TrimPrefix(target, "file:"); path != target {
		return func(client net.Conn) { sendFile(client, path) }
	}
	network := "tcp"
	if path := strings.TrimPrefix(target, "unix:"); path != target {
		network, target = "unix", path
	}
	return func(client net.Conn) { relay(client, network, target) }
}

func main() {
	fd, err := strconv.Atoi(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.FileListener(os.NewFile(uintptr(fd), "listener"))
	if err != nil {
		log.Fatal(err)
	}
	handle := handler(os.Args[2])
	for {
		client, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go handle(client)
	}
}
