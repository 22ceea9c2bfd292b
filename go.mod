module github.com/headstart-serving/headstart

go 1.26.0
