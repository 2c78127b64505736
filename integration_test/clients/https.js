// Posts with an https.Agent that keeps its sockets, until standard input ends: of each
// answer it prints the number of its socket and the process that it came from, and at the
// end how many sockets are still open. What is lost it does not send again.
'use strict'
const https = require('https')

const [port, name, sockets] = process.argv.slice(1)
const agent = new https.Agent({ keepAlive: true, maxSockets: Number(sockets), rejectUnauthorized: false, servername: name })
const known = []
let ended = false
let loops = 0
let requests = 0

function lost (why) {
  console.log('lost: ' + why)
}

function post () {
  if (ended) {
    if (--loops === 0) {
      console.log(`kept ${known.filter((s) => !s.destroyed).length}`)
      agent.destroy()
    }
    return
  }
  const body = `${++requests}`.padEnd(Math.random() * 20000, '.')
  let socket
  let over = false
  const done = (why) => {
    if (over) return
    over = true
    if (why) lost(why)
    setTimeout(post, Math.random() * 20)
  }
  const req = https.request({ host: '127.0.0.1', port, path: '/echo', method: 'POST', agent }, (res) => {
    let got = ''
    res.setEncoding('latin1')
    res.on('data', (data) => { got += data })
    res.on('error', (err) => done(`in the answer: ${err}`))
    res.on('close', () => done(res.complete ? undefined : 'the answer is cut'))
    res.on('end', () => {
      if (res.statusCode !== 200 || got !== body) return done(`answered ${res.statusCode} ${got.slice(0, 60)}`)
      const { name: cipher, version } = socket.getCipher()
      console.log(`ok ${known.indexOf(socket)} ${res.headers['x-pid']} ${version} ${cipher}`)
      done()
    })
  })
  req.on('socket', (s) => {
    socket = s
    if (!known.includes(s)) known.push(s)
  })
  req.on('error', (err) => done(`${err}`))
  req.end(body)
}

process.stdin.on('end', () => { ended = true }).resume()
// Twice as many as sockets, so that some wait for one, and take it when it has just
// had its answer.
for (; loops < 2 * sockets; loops++) post()
