// Copies an image with the library of CRI-O, Podman and Skopeo, in a newer version than that of the system's packages.
//
//	image-library [options] SOURCE TARGET
//
// Both are docker://NAME, oci:PATH, dir:PATH, or containers-storage:NAME in the storage of $CONTAINERS_STORAGE_CONF.
// Standard output: the digest of the manifest.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/transports/alltransports"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/reexec"
)

func main() {
	if reexec.Init() { // the storage starts this program again to unpack layers
		return
	}
	digest, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(digest)
}

func run() (digest.Digest, error) {
	var system types.SystemContext
	flag.StringVar(&system.SystemRegistriesConfPath, "registries-conf", "", "the file registries.conf")
	flag.StringVar(&system.AuthFilePath, "auth-file", "", "the file auth.json")
	flag.StringVar(&system.DockerPerHostCertDirPath, "certs-dir", "", "a directory of certs.d")
	all := flag.Bool("all", false, "copy an index and all its images")
	plainHTTP := flag.Bool("plain-http", false, "allow HTTP, and certificates that are not trusted")
	compress := flag.String("compress", "", "compress layers in this format")
	flag.Parse()
	if *plainHTTP {
		system.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	system.SystemRegistriesConfDirPath = "/nonexistent" // not that of the machine
	source, err := alltransports.ParseImageName(flag.Arg(0))
	if err != nil {
		return "", err
	}
	target, err := alltransports.ParseImageName(flag.Arg(1))
	if err != nil {
		return "", err
	}
	policy, err := signature.NewPolicyContext(&signature.Policy{
		Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()},
	})
	if err != nil {
		return "", err
	}
	defer policy.Destroy()
	options := copy.Options{SourceCtx: &system, DestinationCtx: &system}
	if *all {
		options.ImageListSelection = copy.CopyAllImages
	}
	if *compress != "" {
		algorithm, err := compression.AlgorithmByName(*compress)
		if err != nil {
			return "", err
		}
		system.CompressionFormat = &algorithm
		options.ForceCompressionFormat = true
	}
	copied, err := copy.Image(context.Background(), policy, target, source, &options)
	if err != nil {
		return "", err
	}
	return manifest.Digest(copied)
}
