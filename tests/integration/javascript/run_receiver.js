// Receives in a runtime without pages: the setup is the argument, reports are lines of JSON.
import process from "node:process";
import { receive } from "./receiver.js";

receive(JSON.parse(process.argv[2]), (each) => console.log(JSON.stringify(each)));
